"""Compare inference in medseg, nnU-Net and MONAI: the same weights and volumes, each tool in its own process.

    python benchmarks/inference.py ct.nii.gz --work /tmp/inference --small imagesTr window file export memory many

`ct.nii.gz` is any CT. It is resampled to 1.5 mm for ``file`` and to 512 x 512 x 448 voxels for ``memory``. ``many`` reads 20 small
images from the folder given by ``--small``. Networks have nnU-Net's architecture and random weights. Results are in
WORK/results.json, so that parts can be run one by one; tables and the plot are created from all results.

Needs ``pip install medseg[benchmark]``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from inference_report import report
from worker_process import answer, run_worker

ROOT = Path(__file__).resolve().parents[1]
PARTS = ("window", "file", "export", "memory", "budget", "many")
BIG = (512, 512, 448)
ROUNDS = 3


def main() -> None:
    """Run the parts and report their results."""
    if sys.argv[1:2] == ["--worker"]:
        import inference_workers

        return answer(inference_workers, sys.argv[2], json.loads(sys.argv[3]))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("image", type=Path, help="a CT volume")
    parser.add_argument(
        "parts", nargs="*", default=PARTS, help=f"parts to run: {' '.join(PARTS)} (default: all)"
    )
    parser.add_argument("--work", type=Path, required=True, help="folder for volumes, models and results")
    parser.add_argument("--small", type=Path, help="folder of small images for `many`")
    parser.add_argument(
        "--compiled", action="store_true", help="also measure the compiled network; compiling takes minutes"
    )
    parser.add_argument("--publish", action="store_true", help="write the tables to docs/measurements.md")
    options = parser.parse_intermixed_args()
    options.work.mkdir(parents=True, exist_ok=True)
    for part in options.parts:
        found = globals()[f"_part_{part}"](options)
        results = _results(options.work)
        results[part] = found
        (options.work / "results.json").write_text(json.dumps(results, indent=1))
    report(_results(options.work), options.work, publish=options.publish)
    return None


def _results(work: Path) -> dict[str, Any]:
    path = work / "results.json"
    return json.loads(path.read_text()) if path.is_file() else {}


def _part_window(options: argparse.Namespace) -> dict[str, Any]:
    nnunet, model = _models(options.work, "real", classes=3, features=(32, 64, 128, 256, 320, 320))
    jobs: dict[str, Any] = {}
    for dtype in ("float32", "bfloat16") if _has_amx() else ("float32",):
        ours: dict[str, Any] = {"model": model, "dtype": dtype}
        jobs[f"nnunet {dtype}"] = ("window_nnunet", {"folder": nnunet, "dtype": dtype})
        jobs[f"medseg {dtype}"] = ("window_medseg", ours)
        if options.compiled:
            jobs[f"medseg {dtype} compiled"] = ("window_medseg", {**ours, "compiled": True})
    found = _in_rounds(jobs)
    exact = np.array(found["nnunet float32"].pop("probe"))
    for name, figures in found.items():
        if "probe" in figures:
            figures["difference"] = float(np.abs(np.array(figures.pop("probe")) - exact).max())
        print(name, figures, flush=True)
    return found


def _in_rounds(jobs: dict[str, Any]) -> dict[str, Any]:
    """Return the fastest of several runs of each job; jobs take turns, so that a busy machine affects all alike."""
    found: dict[str, Any] = {}
    for _ in range(ROUNDS):
        for name, (worker, settings) in jobs.items():
            figures = _run(worker, **settings)
            best = found.get(name, {})
            if name not in found or figures.get("seconds", np.inf) < best.get("seconds", np.inf):
                found[name] = figures
    return found


def _part_file(options: argparse.Namespace) -> dict[str, Any]:
    nnunet, model = _models(options.work, "real14", classes=14, features=(32, 64, 128, 256, 320, 320))
    image = _resampled(options, "ct15", spacing=(1.5, 1.5, 1.5))
    out = options.work / "labels"
    jobs = {
        "nnunet": ("file_nnunet", {"folder": nnunet}),
        "monai": ("file_monai", {"model": model}),
        "medseg float32": ("file_medseg", {"model": model, "precision": "float32"}),
        "medseg float32, body": (
            "file_medseg",
            {"model": model, "precision": "float32", "crop_to_body": True, "skip_empty": True},
        ),
    }
    if _has_amx():
        jobs["medseg bfloat16"] = ("file_medseg", {"model": model, "precision": "bfloat16"})
        jobs["medseg bfloat16, body"] = (
            "file_medseg",
            {"model": model, "precision": "bfloat16", "crop_to_body": True, "skip_empty": True},
        )
    return _compared(jobs, image, out, "nnunet")


def _part_memory(options: argparse.Namespace) -> dict[str, Any]:
    """Measure peak memory.

    Windows do not overlap: nnU-Net and MONAI then need as much memory as with overlap, and an eighth of the time. medseg
    needs less memory without overlap, so it is also run with windows that overlap by half.
    """
    found: dict[str, Any] = {}
    image, out = _resampled(options, "big", shape=BIG), options.work / "labels"
    for classes in (25, 117):
        nnunet, model = _models(
            options.work, f"tiny{classes}", classes=classes, features=(4, 8, 16), native=image
        )
        ours = {"model": model, "precision": "float32", "overlap": 0.0}
        half = {**ours, "overlap": 0.5}
        if classes == 25:
            deep = _resampled(options, "deep", shape=(*BIG[:2], 2 * BIG[2]))
            peers = {
                "medseg": ("file_medseg", ours),
                "monai": ("file_monai", {"model": model, "overlap": 0.0}),
                "nnunet": ("file_nnunet", {"folder": nnunet, "overlap": 0.0}),
            }
            found["25 classes"] = _compared(peers, image, out, "medseg")
            found["25 classes, twice the depth"] = _compared({"medseg": peers["medseg"]}, deep, out, "medseg")
            budgets: dict[str, Any] = {
                "medseg": ("file_medseg", half),
                "medseg, 3 GB": ("file_medseg", {**half, "max_memory": "3GB"}),
            }
            found["25 classes, half overlap"] = _compared(budgets, image, out, "medseg")
        else:
            found["117 classes"] = {"medseg": _run("file_medseg", image=image, output=out / "many", **ours)}
    return found


def _part_budget(options: argparse.Namespace) -> dict[str, Any]:
    """Measure five memory limits for 117 classes on a 256 x 256 x 224 volume, with the estimate for each."""
    image = _resampled(options, "mid", shape=tuple(n // 2 for n in BIG))
    _, model = _models(options.work, "half117", classes=117, features=(4, 8, 16), native=image)
    found = {}
    for budget in ("3.2GB", "3.5GB", "4GB", "5GB", "7GB"):
        settings = {"model": model, "image": image, "precision": "float32", "max_memory": budget}
        found[budget] = {
            **_run("file_medseg", output=options.work / "budget", **settings),
            "estimate": _run("estimate_medseg", **settings),
        }
        print(budget, found[budget], flush=True)
    return found


def _part_export(options: argparse.Namespace) -> dict[str, Any]:
    size = {"shape": [128, 160, 160], "target": [205, 256, 256], "classes": 25}
    found = _in_rounds({name: (f"export_{name}", size) for name in ("nnunet", "medseg")})
    probes = [np.array(figures.pop("probe")) for figures in found.values()]
    found["medseg"]["agreement"] = float((probes[0] == probes[1]).mean())
    print(found, flush=True)
    return found


def _part_many(options: argparse.Namespace) -> dict[str, Any]:
    if options.small is None:
        raise SystemExit("many: give a folder of small images with --small.")
    _, model = _models(
        options.work,
        "small",
        classes=3,
        features=(32, 64, 128, 256),
        patch=(40, 56, 40),
        spacing_mm=1.0,
        scheme="ZScore",
    )
    images = [str(path) for path in sorted(options.small.glob("*.nii.gz"))[:20]]
    folder = options.work / "many"
    folder.mkdir(exist_ok=True)
    found = {"medseg": _run("many_medseg", model=model, images=images, folder=folder)}
    print(found, flush=True)
    return found


def _compared(jobs: dict[str, Any], image: Path, out: Path, reference: str) -> dict[str, Any]:
    """Run every job on the image and compare its label map with the reference's."""
    import medseg

    found = {}
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    for name, (worker, settings) in jobs.items():
        output = out / name.replace(" ", "_").replace(",", "")
        found[name] = _run(worker, image=image, output=output, **settings)
        if "failed" not in found[name]:
            names = (f"{output.name}.nii.gz", f"{output.name}_0.nii.gz")  # MONAI adds a number
            found[name]["file"] = str(next(out / one for one in names if (out / one).is_file()))
        print(name, found[name], flush=True)
    if "file" in found.get(reference, {}):
        exact = medseg.read_labels(found[reference]["file"]).data
        for figures in found.values():
            if "file" in figures:
                labels = medseg.read_labels(figures.pop("file")).data
                figures["agreement"] = float((labels == exact).mean())
                figures["dice"] = _lowest_dice(labels, exact)
    return found


def _lowest_dice(labels: np.ndarray[Any, Any], exact: np.ndarray[Any, Any]) -> float:
    """Return the Dice of the class that differs most."""
    values = []
    for value in np.unique(exact):
        a, b = labels == value, exact == value
        values.append(float(2 * (a & b).sum() / (a.sum() + b.sum())))
    return min(values)


def _models(
    work: Path,
    name: str,
    *,
    classes: int,
    features: tuple[int, ...],
    patch: tuple[int, ...] = (128, 128, 128),
    scheme: str = "CT",
    spacing_mm: float = 1.5,
    native: Path | None = None,
) -> tuple[Path, Path]:
    """Write a trained nnU-Net folder with random weights and import it into medseg."""
    sys.path.insert(0, str(ROOT))
    from tests.helpers.nnunet_models import architecture, configuration, dataset_of, plans_of, write_trained

    nnunet, model = work / f"nnunet_{name}", work / f"medseg_{name}"
    if not model.is_dir():
        net = architecture(3, features=features)
        blocks = [2] * len(features)
        net["arch_kwargs"] |= {"n_conv_per_stage": blocks, "n_conv_per_stage_decoder": blocks[1:]}
        spacing = [spacing_mm] * 3
        if native is not None:  # prediction without resampling
            import medseg

            spacing = [float(v) for v in reversed(medseg.read(native).spacing)]
        plans = plans_of(
            {"3d_fullres": configuration(list(patch), spacing, net, [f"{scheme}Normalization"], [False])}
        )
        labels = {"background": 0, **{f"organ {i}": i for i in range(1, classes)}}
        folder = write_trained(nnunet, "3d_fullres", plans, dataset_of(1, labels))
        subprocess.run(
            [sys.executable, "-m", "medseg", "import", "nnunet", str(folder), "-o", str(model)], check=True
        )
    return next(nnunet.iterdir()), model


def _resampled(options: argparse.Namespace, name: str, **target: Any) -> Path:
    """Write the CT at another size as int16, once, and return its path."""
    path: Path = options.work / f"{name}.nii.gz"
    if not path.is_file():
        import medseg

        volume = medseg.read(options.image).resampled(order=1, **target)
        medseg.write(volume.with_data(np.round(volume.data).astype(np.int16)), path)
    return path


def _run(worker: str, **settings: Any) -> dict[str, Any]:
    """Return the results of a worker in its own process, or why it failed."""
    return run_worker(__file__, worker, **settings)


def _has_amx() -> bool:
    from medseg.runtime.devices import has_amx

    return has_amx()


if __name__ == "__main__":
    main()
