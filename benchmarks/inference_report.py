"""Tables and a plot of what `inference.py` measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from readme import PICTURES, machine, markdown, put_into_readme

Figures = dict[str, Any]


def report(results: dict[str, Any], work: Path, *, publish: bool) -> None:
    """Print the tables, draw the plot into WORK/inference.png, and put both into README.md if wanted."""
    title = "Inference beside nnU-Net and MONAI, the same weights, each in a process of its own (`benchmarks/inference.py`)."
    tables = [
        title,
        f"{machine()}.",
        *[_TABLES[part](found) for part, found in results.items() if part in _TABLES],
    ]
    if "memory" in results:
        path = (PICTURES if publish else work) / "inference.png"
        _plot(results["memory"], path)
        tables.append(f"![Peak memory]({PICTURES.name}/{path.name})")
    text = "\n\n".join(tables) + "\n"
    if publish:
        put_into_readme("inference", text)
    else:
        print(text)


def _window(found: Figures) -> str:
    base = found["nnunet float32"]["seconds"]
    rows = [
        [name, f"{f['seconds']:.2f}", f"{base / f['seconds']:.1f}", f"{f.get('difference', 0):.1e}"]
        for name, f in found.items()
        if "seconds" in f
    ]
    title = "One window of 128³ through nnU-Net's network of 31 M parameters:"
    return f"{title}\n\n" + markdown(
        ["path", "seconds", "times faster", "largest difference of a logit"], rows
    )


def _file(found: Figures) -> str:
    base = found["nnunet"].get("seconds")
    rows = [_file_row(name, f, base) for name, f in found.items()]
    title = (
        "File to file, the torso CT at 1.5 mm, the same network of 31 M parameters, 14 classes, half overlap, no mirroring; "
        "nnU-Net kept one core busy here, so look at CPU seconds, too; MONAI's windows lie elsewhere, so that its labels differ:"
    )
    header = [
        "",
        "seconds",
        "times faster",
        "CPU seconds",
        "peak memory GB",
        "voxels that agree with nnU-Net",
        "lowest Dice of a class",
    ]
    return f"{title}\n\n" + markdown(header, rows)


def _file_row(name: str, figures: Figures, base: float | None) -> list[str]:
    if "failed" in figures:
        return [name, figures["failed"], *[""] * 5]
    ratio = f"{base / figures['seconds']:.1f}" if base else ""
    return [
        name,
        f"{figures['seconds']:.0f}",
        ratio,
        f"{figures['cpu']:.0f}",
        f"{figures['peak'] / 1e9:.1f}",
        f"{100 * figures['agreement']:.2f} %" if "agreement" in figures else "",
        f"{figures['dice']:.4f}" if "dice" in figures else "",
    ]


def _memory(found: Figures) -> str:
    rows = []
    for setting, tools in found.items():
        for name, figures in tools.items():
            peak = figures.get("failed") or f"{figures['peak'] / 1e9:.1f}"
            seconds = f"{figures['seconds']:.0f}" if "seconds" in figures else "-"
            same = f"{100 * figures['agreement']:.2f} %" if "agreement" in figures else ""
            rows.append([setting, name, peak, seconds, same])
    title = (
        "Peak memory of the process, 512 × 512 × 448 voxels at the spacing of a tiny network; windows lie side by side "
        "unless told otherwise, which takes nnU-Net and MONAI as much memory as with overlap (MONAI's lie elsewhere):"
    )
    return f"{title}\n\n" + markdown(
        ["", "", "peak memory GB", "seconds", "labels that equal the first"], rows
    )


def _export(found: Figures) -> str:
    base = found["nnunet"]["seconds"]
    rows = [[n, f"{f['seconds']:.2f}", f"{base / f['seconds']:.1f}"] for n, f in found.items()]
    agree = 100 * found["medseg"]["agreement"]
    title = (
        f"Logits of 25 classes, 160 × 160 × 128, to labels on 256 × 256 × 205; {agree:.3f} % of labels agree:"
    )
    return f"{title}\n\n" + markdown(["", "seconds", "times faster"], rows)


def _budget(found: Figures) -> str:
    rows = [
        [
            budget,
            f"{f['peak'] / 1e9:.2f}",
            f"{f['estimate']['memory'] / 1e9:.2f}",
            f"{f['estimate']['bands']}",
            f"{f['seconds']:.0f}",
            f"{f['estimate']['seconds']:.0f}",
        ]
        if "failed" not in f
        else [budget, f["failed"], "", "", "", ""]
        for budget, f in found.items()
    ]
    header = ["`--max-memory`", "peak GB", "estimated GB", "parts", "seconds", "estimated seconds"]
    return "117 classes, 256 × 256 × 224 voxels:\n\n" + markdown(header, rows)


def _many(found: Figures) -> str:
    figures = found["medseg"]
    share = 100 * (figures["seconds"] / figures["network"] - 1)
    return (
        f"{figures['cases']} hippocampi in one call: {figures['seconds']:.1f} s, of which {figures['network']:.1f} s in the "
        f"network: {share:.0f} % beyond it."
    )


_TABLES = {
    "window": _window,
    "file": _file,
    "export": _export,
    "memory": _memory,
    "budget": _budget,
    "many": _many,
}


def _plot(memory: Figures, path: Path) -> None:
    """Bars of peak memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    bars = [
        (f"{name}\n{setting}", f["peak"] / 1e9)
        for setting, tools in memory.items()
        for name, f in tools.items()
        if "peak" in f
    ]
    figure, axes = plt.subplots(figsize=(8, 0.5 * len(bars) + 1.2), layout="constrained")
    random_volume = axes.barh([name for name, _ in bars], [value for _, value in bars], color="#3b6ea5")
    axes.bar_label(random_volume, fmt="%.1f GB", padding=3)
    axes.set_xlabel("peak memory of the process, GB")
    axes.spines[["top", "right"]].set_visible(False)
    axes.invert_yaxis()
    figure.savefig(path, dpi=120)
    plt.close(figure)
