"""Post-training quantization with NNCF: a graph of OpenVINO with 8-bit integers."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medseg.errors import ModelError
from medseg.inference.engines.onnx_graph import require_packages
from medseg.inference.engines.runtimes import INT8_FILE, openvino_graph, without_telemetry
from medseg.models.base import Model

_CONVOLUTIONS = ("Convolution", "ConvolutionBackpropData", "GroupConvolution")


def int8_graph(
    model: Model, windows: Sequence[NDArray[np.float32]], *, float_ends: bool
) -> Any:  # pragma: extra
    """Convert a network to 8-bit integers, whose ranges follow from windows.

    Args:
        model: The network; set to evaluation mode, float32 and the default memory format.
        windows: Images `(1, c, *spatial)` of one size, see `calibration_windows`.
        float_ends: Whether the first and the last convolution stay in float32.

    Returns:
        The ``openvino.Model``.

    Raises:
        ModelError: Packages are missing, or the network cannot be expressed for OpenVINO.
    """
    require_packages(("nncf",), "openvino", "quantize")
    graph = openvino_graph(model, windows[0].shape[2:])
    without_telemetry()
    with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # its progress bars and advertisements
        import nncf

        nncf.set_log_level(logging.ERROR)
        return nncf.quantize(
            graph,
            nncf.Dataset(list(windows)),
            preset=nncf.QuantizationPreset.MIXED,
            subset_size=len(windows),
            ignored_scope=nncf.IgnoredScope(names=_ends(graph)) if float_ends else None,
        )


def save_graph(graph: Any, folder: Path) -> None:  # pragma: extra
    """Write a graph of OpenVINO as two files.

    Args:
        graph: The ``openvino.Model``.
        folder: Existing folder.

    Raises:
        ModelError: The files cannot be written.
    """
    import openvino

    try:
        openvino.save_model(graph, folder / INT8_FILE, compress_to_fp16=False)
    except RuntimeError as error:  # OpenVINO's errors have no common base class
        raise ModelError(
            f"{folder}: cannot be written ({str(error).strip()}). Choose another folder."
        ) from None


def _ends(graph: Any) -> list[str]:  # pragma: extra
    """Return the names of the first and of the last convolution."""
    names = [
        node.get_friendly_name() for node in graph.get_ordered_ops() if node.get_type_name() in _CONVOLUTIONS
    ]
    return list(dict.fromkeys((names[0], names[-1]))) if names else []
