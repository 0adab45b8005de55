"""Create the tables and the plot of `training.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from measurements_page import FIGURES, machine, markdown, show_section

Figures = dict[str, Any]
PUBLISHED = (0.8975 + 0.8807) / 2  # nnU-Net 3d_fullres, five folds: MONAI tutorials, modules/dynunet_pipeline
COLOURS = {"medseg": "#3b6ea5", "nnU-Net": "#c8553d"}


def report(results: Figures, work: Path, *, publish: bool) -> None:
    """Print the tables, draw the curves into WORK/training.png, and write the tables to docs/measurements.md on request."""
    title = "Training on the hippocampus task, compared with nnU-Net and MONAI. Each tool runs in its own process (`benchmarks/training.py`)."
    tables = [table(results[part]) for part, table in _TABLES.items() if part in results]
    if "curve" in results:
        path = (FIGURES if publish else work) / "training.png"
        _plot(results["curve"], path)
        tables.append(f"![Dice against minutes of training]({FIGURES.name}/{path.name})")
    text = "\n\n".join([title, f"{machine()}.", *tables]) + "\n"
    show_section("training", text, publish=publish)


def _step(found: Figures) -> str:
    base = _median_cpu(found, "nnU-Net")
    rows = [_step_row(name, figures, base) for name, figures in found.items()]
    header = [
        "tool", "parameters", "s/step", "fastest s/step", "samples/s", "CPU s/step", "CPU speed-up", "data wait", "peak GB",
    ]  # fmt: skip
    whole = found["nnU-Net"]
    size = " × ".join(map(str, whole["patch"])) if "patch" in whole else ""
    title = (
        f"Training steps of the network that nnU-Net plans for this task: batches of {whole.get('batch')} patches of {size}, Dice "
        "and cross-entropy on two resolutions, SGD, each tool with its own augmentation. The tools take turns; values are medians."
    )
    return f"{title}\n\n{markdown(header, rows)}\n{_same_network(found)}"


def _step_row(name: str, figures: Figures, base: float | None) -> list[str]:
    if "failed" in figures:
        return [name, figures["failed"], *[""] * 7]
    seconds = [s for turn in figures["rounds"] for s in turn["seconds"]]
    waited = [s for turn in figures["rounds"] for s in turn["waited"]]
    cpu = _cpu(figures)
    return [
        name,
        f"{figures['parameters']:,}",
        f"{median(seconds):.2f}",
        f"{min(seconds):.2f}",
        f"{figures['batch'] / median(seconds):.2f}",
        f"{cpu:.2f}",
        f"{base / cpu:.2f}" if base else "",
        f"{100 * sum(waited) / sum(seconds):.1f} %",
        f"{max(turn['peak'] for turn in figures['rounds']) / 1e9:.1f}",
    ]


def _cpu(figures: Figures) -> float:
    """Return the CPU seconds per call, the median of the rounds."""
    each: list[float] = [turn["cpu"] / len(turn["seconds"]) for turn in figures["rounds"]]
    return median(each)


def _median_cpu(found: Figures, name: str) -> float | None:
    figures = found.get(name, {"failed": ""})
    return None if "failed" in figures else _cpu(figures)


def _same_network(found: Figures) -> str:
    """Return a sentence about parameters without effect, or raise if the networks differ."""
    whole = found["nnU-Net"]
    if "parameters" not in whole:
        return ""
    effective = whole["parameters"] - whole["without_effect"]
    others = {f["parameters"] for name, f in found.items() if name != "nnU-Net" and "parameters" in f}
    if others - {effective}:
        raise SystemExit(
            f"step: found networks of {sorted(others)} parameters, expected {effective:,} as nnU-Net's. The plans differ."
        )
    return (
        f"{whole['without_effect']:,} of nnU-Net's parameters have no effect (biases before a normalisation layer, and a head whose "
        "loss has weight 0). The other tools do not build them.\n"
    )


def _augment(found: Figures) -> str:
    each = {
        name: [s / figures["batch"] for turn in figures["rounds"] for s in turn["seconds"]]
        for name, figures in found.items()
        if "failed" not in figures
    }
    mean = {name: sum(seconds) / len(seconds) for name, seconds in each.items()}
    cpu = {name: _cpu(found[name]) / found[name]["batch"] for name in each}
    rows = [
        [name, f"{1000 * mean[name]:.1f}", f"{1000 * cpu[name]:.1f}", f"{cpu[name] / min(cpu.values()):.1f}"]
        for name in each
    ]
    rows += [[name, figures["failed"], "", ""] for name, figures in found.items() if "failed" in figures]
    return "Time to augment one patch on one thread:\n\n" + markdown(["tool", "ms", "CPU ms", "ratio"], rows)


def _curve(points: Sequence[Figures]) -> str:
    rows = [
        [
            point["peer"],
            f"{point['minutes']:g}",
            f"**{point['dice']:.3f}**",
            *(f"{value:.3f}" for value in point["labels"].values()),
            "-" if point["hd95_mm"] is None else f"{point['hd95_mm']:.2f}",  # nothing was found
            f"{point['steps']:,}",
        ]
        for point in sorted(points, key=lambda point: (point["peer"], point["minutes"]))
    ]
    names = [f"Dice {name}" for name in min(points, key=lambda point: point["peer"])["labels"]]
    title = (
        "Dice of whole held-out volumes (41 cases, nnU-Net's first fold) after a given number of minutes. Each row is a separate "
        "training from scratch whose learning rate decays to 0. medseg uses the plan that `medseg plan` writes for a computer "
        "without a GPU (half of nnU-Net's channels, batches of 2, AdamW); nnU-Net uses its own plan (batches of 7, SGD)."
    )
    return f"{title}\n\n{markdown(['tool', 'minutes', 'mean Dice', *names, 'HD95 mm', 'steps'], rows)}"


_TABLES: dict[str, Callable[[Any], str]] = {"step": _step, "augment": _augment, "curve": _curve}


def _plot(points: Sequence[Figures], path: Path) -> None:
    """Plot Dice against minutes on a logarithmic axis."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullLocator

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for peer, colour in COLOURS.items():
        own = sorted((point["minutes"], point["dice"]) for point in points if point["peer"] == peer)
        if own:
            axes.plot(*zip(*own, strict=True), "o-", color=colour, label=peer)
    axes.axhline(PUBLISHED, color="#777777", linestyle=":", label=f"nnU-Net, published: {PUBLISHED:.3f}")
    minutes = sorted({point["minutes"] for point in points})
    axes.set_xscale("log")
    axes.set_xticks(minutes, [f"{value:g}" for value in minutes])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel(f"minutes of training, {machine()}")
    axes.set_ylabel("mean Dice of held-out cases")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
