"""The programs that run a graph on the processor: ONNX Runtime and OpenVINO.

Both use as many threads as PyTorch, so that several processes of one machine share its cores.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from medseg.errors import ModelError, error_message
from medseg.inference.engines.onnx_graph import require_packages, require_size, to_onnx
from medseg.storage.manifest import check_manifest

if TYPE_CHECKING:
    from medseg.models.base import Model

Run = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""Maps images `(n, c, *spatial)` to logits `(n, k, *spatial)`."""

_EXPORT = ("onnx", "onnxscript")
INT8_FILE = "model.xml"
"""Name of the 8-bit network in its folder; its weights are in ``model.bin``."""


def onnxruntime_session(graph: bytes | Path, where: str) -> Any:
    """Return a session of ONNX Runtime on the processor.

    Args:
        graph: The serialised graph, or its file.
        where: What needs the session, for messages.

    Returns:
        The ``InferenceSession``.

    Raises:
        ModelError: ONNX Runtime cannot run the graph.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's errors have no common base class
        raise _cannot("onnxruntime cannot run this model", error, where) from None


def run_with_onnx(model: Model, size: tuple[int, ...]) -> Run:
    """Return a function that runs a network in ONNX Runtime, in float32.

    Args:
        model: The network; set to evaluation mode, float32 and the default memory format.
        size: Spatial sizes of its images.

    Returns:
        The function.

    Raises:
        ModelError: Packages are missing, or the network cannot be expressed or run.
    """
    where = "engine=onnx"
    require_packages((*_EXPORT, "onnxruntime"), "onnx", where)
    require_size(model, where)
    graph = to_onnx(model, size, {}, dynamic=False).SerializeToString()
    session = onnxruntime_session(graph, where)

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        logits: NDArray[np.float32] = session.run(["logits"], {"image": image})[0]
        return logits

    return run


def run_with_openvino(model: Model, size: tuple[int, ...]) -> Run:  # pragma: extra
    """Return a function that runs a network in OpenVINO, in float32.

    Args:
        model: As for `run_with_onnx`.
        size: Spatial sizes of its images.

    Returns:
        The function.

    Raises:
        ModelError: As of `run_with_onnx`.
    """
    return compiled_by_openvino(openvino_graph(model, size), "engine=openvino")


def run_int8(folder: Path, size: tuple[int, ...]) -> Run:  # pragma: extra
    """Return a function that runs the 8-bit network of a model folder in OpenVINO.

    Args:
        folder: Folder of the 8-bit network.
        size: Spatial sizes of its images.

    Returns:
        The function.

    Raises:
        ModelError: OpenVINO is missing, the file is not readable, or it takes images of another size.
    """
    core, file = openvino_core("precision=int8"), folder / INT8_FILE
    check_manifest(folder)
    try:
        graph = core.read_model(file)
    except Exception as error:  # OpenVINO's errors have no common base class
        raise ModelError(
            f"{file}: not readable ({_first_line(error)}). Copy the model folder again."
        ) from None
    found = tuple(int(length.get_length()) for length in tuple(graph.input(0).partial_shape)[2:])
    if found != size:
        raise ModelError(
            f"{file}: size of images: found {found}, expected {size}. Run medseg quantize again, or predict with precision=float32."
        )
    return compiled_by_openvino(graph, "precision=int8")


def openvino_core(where: str) -> Any:  # pragma: extra
    """Return OpenVINO's ``Core``; it sends no usage statistics.

    Args:
        where: What needs it, for the message.

    Returns:
        The core.

    Raises:
        ModelError: OpenVINO is not installed.
    """
    require_packages(("openvino",), "openvino", where)
    without_telemetry()
    import openvino

    return openvino.Core()


def without_telemetry() -> None:  # pragma: extra
    """Switch the usage statistics of OpenVINO and NNCF off; call it before they are imported."""
    os.environ["NNCF_CI"] = "1"  # NNCF's own switch: its events go to a stub
    # NNCF reports that it was imported before it looks at this switch. Both libraries send nothing if they cannot import the
    # package that sends.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]


def openvino_graph(model: Model, size: tuple[int, ...]) -> Any:  # pragma: extra
    """Convert a network for OpenVINO.

    Args:
        model: As for `run_with_onnx`.
        size: Spatial sizes of its images; the batch size is free.

    Returns:
        The ``openvino.Model``.

    Raises:
        ModelError: As of `run_with_onnx`.
    """
    where = "engine=openvino"
    require_packages(_EXPORT, "openvino", where)
    core = openvino_core(where)
    require_size(model, where)
    graph = to_onnx(model, size, {}, dynamic=False).SerializeToString()
    try:
        return core.read_model(graph)
    except Exception as error:  # OpenVINO's errors have no common base class
        raise _cannot("OpenVINO cannot read this model", error, where) from None


def compiled_by_openvino(graph: Any, where: str) -> Run:  # pragma: extra
    """Return a function that runs a graph of OpenVINO on the processor.

    Operations in float32 are exact: OpenVINO would use bfloat16 on processors that have it.

    Args:
        graph: The ``openvino.Model``.
        where: What needs it, for messages.

    Returns:
        The function.

    Raises:
        ModelError: OpenVINO cannot run the graph.
    """
    settings = {
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "INFERENCE_PRECISION_HINT": "f32",
        "PERFORMANCE_HINT": "LATENCY",
    }
    try:
        compiled = openvino_core(where).compile_model(graph, "CPU", settings)
    except Exception as error:  # OpenVINO's errors have no common base class
        raise _cannot("OpenVINO cannot run this model", error, where) from None

    def run(image: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.array(compiled(image)[0])  # a copy: the next call overwrites the result

    return run


def _cannot(what: str, error: Exception, where: str) -> ModelError:
    """Return the error of an engine that cannot be used for a model, with the first line of its own message."""
    return ModelError(error_message(where, f"{what} ({_first_line(error)})", fix="Predict with engine=torch"))


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
