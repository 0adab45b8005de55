"""Measure how prediction scales with the workers of a Dask cluster, and the processor time that a case costs beside the network.

    python benchmarks/cohort.py                      # 60 cases, a minute or two
    python benchmarks/cohort.py --cases 1000 --publish

Small CT phantoms are predicted with ``medseg.predict`` on 1, 2 and 4 workers of this machine. The network is replaced by a sleep
of half a second, as if it ran on a GPU, so that workers compete for nothing but the processor time of everything else: reading,
preparing, writing, hashing, records, claims and tables. Time is measured from the first finished case to the last one, so without the
start of the workers. The table is written to docs/measurements.md with ``--publish``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from measurements_page import machine, markdown, show_section

from medseg.inference.predictor import Predictor
from medseg.volumes.volume import Volume

SECONDS = 0.5
SHAPE = (32, 32, 32)
WORKERS = (1, 2, 4)


def replace_network() -> None:
    """Let every prediction of this process sleep and return an empty label map."""

    def sleep(self: Predictor, prepared: Any, **options: Any) -> Volume:
        time.sleep(SECONDS)
        volume: Volume = prepared.target.volume
        return volume

    Predictor.run = sleep  # type: ignore[method-assign]


def write_model(folder: Path) -> None:
    """Write a model folder with a tiny network."""
    import medseg
    from medseg.model_folder.folder import save_model
    from medseg.model_folder.settings import SavedModel

    saved = SavedModel.parse(
        {
            "medseg": "0.1",
            "name": "organs",
            "model": {"name": "unet_3d", "channels": [4, 8]},
            "channel_names": ["CT"],
            "preprocessing": {"channels": [{"method": "zscore"}]},
            "window": [16, 16, 16],
        }
    )
    labels = medseg.Labels.from_names({"background": 0, "liver": 5, "spleen": 7})
    model = medseg.build_model("unet_3d", in_channels=1, num_classes=3, channels=[4, 8])
    save_model(folder, model, saved, labels)


def write_images(folder: Path, cases: int) -> None:
    """Write phantoms, of which a few are distinct; the others are copies."""
    import shutil

    import medseg
    from medseg.data.datasets.phantom import phantom_case

    folder.mkdir()
    for index in range(cases):
        path = folder / f"ct{index:04d}.nii.gz"
        if index < 8:
            medseg.write(phantom_case(index, "ct", SHAPE, (8.0, 8.0, 8.0))[0], path)
        else:
            shutil.copy(folder / f"ct{index % 8:04d}.nii.gz", path)


def processor_seconds() -> dict[int, float]:
    """Return the processor time of this process and of its children so far, by process."""
    found: dict[int, float] = {}
    process = psutil.Process()
    for one in (process, *process.children(recursive=True)):
        try:
            times = one.cpu_times()
            found[one.pid] = times.user + times.system
        except psutil.Error:
            continue
    return found


def measure(model: Path, images: Path, out: Path, workers: int) -> tuple[float, float, float]:
    """Predict all images on a number of workers.

    Returns:
        Seconds per case, processor seconds per case, and seconds until the first case was done.
    """
    from medseg.inference.cohort.loaded_models import LoadedModels
    from medseg.inference.cohort.output_files import OutputFiles
    from medseg.inference.cohort.predict_folder import Cluster, FolderPrediction, named_cases

    models = LoadedModels.load(model, device="cpu")
    cluster = Cluster(f"local:{workers}", "cpu")
    prediction = FolderPrediction(models, named_cases(images, 1), OutputFiles(out), cluster=cluster)
    began = time.perf_counter()
    start, used_before, done, failed = 0.0, {}, 0, []
    end, used = 0.0, {}
    warm_up = 2 * workers  # every worker has loaded the model by then
    for outcome in prediction:
        done += 1
        failed += [str(outcome.error)] if outcome.error is not None else []
        if done == warm_up:
            start, used_before = time.perf_counter(), processor_seconds()
        if done == len(prediction):
            end, used = time.perf_counter(), processor_seconds()
    if failed:
        raise SystemExit(f"{len(failed)} cases failed, the first: {failed[0]}")
    spent = sum(seconds - used_before.get(pid, 0.0) for pid, seconds in used.items())
    cases = done - warm_up
    return (end - start) / cases, spent / cases, start - began


def main() -> None:
    """Measure each number of workers and print or publish the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--cases", type=int, default=60)
    parser.add_argument("--publish", action="store_true", help="write the table to docs/measurements.md")
    options = parser.parse_args()
    rows, single = [], 0.0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model")
        write_images(folder / "images", options.cases)
        for workers in WORKERS:
            seconds, spent, first = measure(
                folder / "model", folder / "images", folder / f"out_{workers}", workers
            )
            single = single or seconds
            share = single / (workers * seconds)
            rows.append(
                [str(workers), f"{1 / seconds:.2f}", f"{share:.3f}", f"{1000 * spent:.0f}", f"{first:.1f}"]
            )
            print(rows[-1], file=sys.stderr, flush=True)
    header = ["workers", "cases/s", "share of linear", "CPU ms per case", "start, s"]
    load = psutil.getloadavg()[0]
    text = f"{machine()}, load average {load:.1f}; {options.cases} cases.\n\n{markdown(header, rows)}"
    show_section("cohort", text, publish=options.publish)


if __name__ in ("__main__", "__mp_main__"):  # also in the workers
    replace_network()
if __name__ == "__main__":
    main()
