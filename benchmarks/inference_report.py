"""Create the tables and the plot of `inference.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from measurements_page import FIGURES, machine, markdown, show_section

Figures = dict[str, Any]


def report(results: dict[str, Any], work: Path, *, publish: bool) -> None:
    """Print the tables, draw the plot into WORK/inference.png and, on request, write both to docs/measurements.md."""
    title = "Inference with the same weights in medseg, nnU-Net and MONAI. Each tool runs in its own process (`benchmarks/inference.py`)."
    tables = [
        title,
        f"{machine()}.",
        *[_TABLES[part](found) for part, found in results.items() if part in _TABLES],
    ]
    if "memory" in results:
        path = (FIGURES if publish else work) / "inference.png"
        _plot(results["memory"], path)
        tables.append(f"![Peak memory]({FIGURES.name}/{path.name})")
    text = "\n\n".join(tables) + "\n"
    show_section("inference", text, publish=publish)


def _window(found: Figures) -> str:
    base = found["nnunet float32"]["seconds"]
    rows = [
        [name, f"{f['seconds']:.2f}", f"{base / f['seconds']:.1f}", f"{f.get('difference', 0):.1e}"]
        for name, f in found.items()
        if "seconds" in f
    ]
    title = "One window of 128³ voxels through nnU-Net's network of 31 M parameters:"
    return f"{title}\n\n" + markdown(["tool", "seconds", "speed-up", "largest difference of a logit"], rows)


def _file(found: Figures) -> str:
    base = found["nnunet"].get("seconds")
    rows = [_file_row(name, f, base) for name, f in found.items()]
    title = (
        "From image file to label file: the torso CT at 1.5 mm, the same network of 31 M parameters, 14 classes, an overlap of "
        "0.5, no mirroring. nnU-Net used a single core here, so compare CPU seconds as well. MONAI places its windows "
        "differently, so its labels differ."
    )
    header = [
        "tool",
        "seconds",
        "speed-up",
        "CPU seconds",
        "peak memory GB",
        "voxels equal to nnU-Net's",
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
        "Peak memory of the process for a volume of 512 × 512 × 448 voxels and a tiny network. Windows do not overlap unless the "
        "first column says so; nnU-Net and MONAI need the same memory with and without overlap. MONAI places its windows "
        "differently."
    )
    return f"{title}\n\n" + markdown(
        ["setting", "tool", "peak memory GB", "seconds", "voxels equal to the first row's"], rows
    )


def _export(found: Figures) -> str:
    base = found["nnunet"]["seconds"]
    rows = [[n, f"{f['seconds']:.2f}", f"{base / f['seconds']:.1f}"] for n, f in found.items()]
    agree = 100 * found["medseg"]["agreement"]
    title = (
        f"Converting logits of 25 classes on 160 × 160 × 128 voxels to labels on 256 × 256 × 205 voxels; {agree:.3f} % of the "
        "labels agree."
    )
    return f"{title}\n\n" + markdown(["tool", "seconds", "speed-up"], rows)


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
    return "Memory budgets for 117 classes and 256 × 256 × 224 voxels:\n\n" + markdown(header, rows)


def _many(found: Figures) -> str:
    figures = found["medseg"]
    share = 100 * (figures["seconds"] / figures["network"] - 1)
    return (
        f"Predicting {figures['cases']} small images in one call took {figures['seconds']:.1f} s, of which {figures['network']:.1f} s "
        f"were spent in the network. Reading and writing added {share:.0f} %."
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
    """Plot the peak memory as bars."""
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
