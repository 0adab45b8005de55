"""Create the tables of `quantization.py`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from measurements_page import machine, markdown, show_section

Figures = dict[str, Any]

ENGINES = {
    "torch float32": ("torch", "float32"),
    "onnx float32": ("onnx", "float32"),
    "openvino float32": ("openvino", "float32"),
    "openvino int8": ("openvino", "int8"),
}
"""Engine and precision of each row; the others are compared with the first."""


def report(results: Mapping[str, Figures], titles: Mapping[str, str], *, publish: bool) -> None:
    """Print the tables of all networks and, on request, write them to docs/measurements.md.

    Args:
        results: Results by network and part; missing parts are left out.
        titles: Headings by network.
        publish: Whether to write the page.
    """
    texts = [f"{machine()}."]
    for name, title in titles.items():
        found = results.get(name, {})
        if "train" in found:
            figures = found["train"]
            texts.append(
                f"{title}: {figures['parameters']:,} parameters, {figures['steps']:,} steps of training."
            )
        if "quantize" in found:
            texts.append(_quantized(found["quantize"]) + "\n\n" + dice_table(found["quantize"]))
        if "engines" in found:
            texts.append(_predicted(found["engines"]) + "\n\n" + engine_table(found))
    text = "\n\n".join(texts) + "\n"
    show_section("quantization", text, publish=publish)


def dice_table(figures: Figures) -> str:
    """Return the Dice of each label in float32 and with 8-bit integers as a table.

    Args:
        figures: Contents of ``int8/measured.json``.

    Returns:
        The table in Markdown; its last row is the mean of the labels.
    """
    dice, int8 = dict(figures["dice"]), dict(figures["dice_int8"])
    for one in (dice, int8):
        one["**mean**"] = sum(one.values()) / len(one)
    rows = [
        [name, f"{dice[name]:.4f}", f"{int8[name]:.4f}", f"{dice[name] - int8[name]:+.4f}"] for name in dice
    ]
    return markdown(["label", "Dice float32", "Dice int8", "loss"], rows)


def engine_table(found: Figures) -> str:
    """Return the engines of a network as a table.

    Args:
        found: Results by part: ``engines`` and, if they were measured, ``window``.

    Returns:
        The table in Markdown.
    """
    engines, windows = found["engines"], found.get("window", {})
    first = next(iter(engines.values()))
    rows = []
    for name, figures in engines.items():
        cases = figures["cases"]
        row = [
            name,
            f"{figures['prediction_cpu'] / cases:.2f}",
            f"{first['prediction_cpu'] / figures['prediction_cpu']:.2f}",
            f"{figures['prediction_wall'] / cases:.2f}",
            f"{figures['start_cpu']:.1f}",
        ]
        for each in windows.values():
            base = next(iter(each.values()))["window_cpu"]
            row += [f"{each[name]['window_cpu']:.2f}", f"{base / each[name]['window_cpu']:.2f}"]
        dice = list(figures["dice"].values())
        row += [
            f"{figures['peak'] / 1e9:.2f}",
            f"{100 * figures['agreement']:.3f} %",
            f"{100 * figures['worst_agreement']:.3f} %",
            f"{sum(dice) / len(dice):.4f}",
        ]
        rows.append(row)
    header = ["engine", "CPU s per case", "speed-up", "s per case", "CPU s to start"]
    for each in windows.values():
        size = " × ".join(map(str, next(iter(each.values()))["window"]))
        header += [f"CPU s per window of {size}", "speed-up"]
    header += ["peak GB", "voxels equal to torch", "in the worst case", "mean Dice"]
    return markdown(header, rows)


def _quantized(figures: Figures) -> str:
    ends = ", with the first and the last convolution in float32" if figures["float_ends"] else ""
    return (
        f"Dice on {figures['cases']} held-out cases, calibrated on {figures['windows']} windows of training cases{ends}; the mean falls "
        f"by {figures['loss']:.4f}:"
    )


def _predicted(engines: Figures) -> str:
    one = next(iter(engines.values()))
    return (
        f"Prediction of {one['cases']} held-out cases ({one['windows']} windows) with {one['threads']} threads and `--max-memory "
        f"{one['max_memory']}`, each engine in its own process. CPU seconds are those of all threads:"
    )
