"""Networks as ONNX graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from medseg.errors import MedsegError, ModelError, error_message
from medseg.models.layers.memory_format import round_up

if TYPE_CHECKING:
    from medseg.models.base import Model

OPSET = 20
LARGEST = 2**31 - 2**24
"""Maximum bytes of weights: a protocol buffer is limited to 2 GiB, and the graph needs some of it."""


def require_packages(packages: Sequence[str], extra: str, where: str) -> None:
    """Raise `ModelError` unless packages are installed.

    Args:
        packages: Names of the packages.
        extra: Extra of medseg that installs them.
        where: What needs them, for the message.
    """
    missing = [name for name in packages if find_spec(name) is None]
    if missing:
        fix = f'Install them with: pip install "medseg[{extra}]"'
        raise ModelError(
            error_message(where, "packages are missing", found=f"no {', '.join(missing)}", fix=fix)
        )


def to_onnx(model: Model, window: tuple[int, ...], notes: Mapping[str, str], *, dynamic: bool) -> Any:
    """Trace a model as an ``onnx.ModelProto``; see `export_onnx`.

    The model is set to evaluation mode, float32 and the default memory format.

    Args:
        model: The model; changed in place.
        window: Spatial sizes of the input.
        notes: Metadata of the file.
        dynamic: Whether the spatial sizes are free.

    Returns:
        The graph with its metadata.

    Raises:
        ModelError: An operation of the model has no ONNX form, or its sizes cannot be free.
    """
    model.cpu().float().to(memory_format=torch.contiguous_format).eval()
    size = window
    shape: dict[int, Any] = {0: torch.export.Dim("batch")}
    if dynamic:
        # The exporter would treat an axis of size one divisor as a constant.
        size = tuple(
            max(n, 2 * d) for n, d in zip(round_up(window, model.divisor), model.divisor, strict=True)
        )
        for axis, (name, step) in enumerate(zip("xyz", model.divisor, strict=False), start=2):
            dimension = torch.export.Dim(name, min=1)
            shape[axis] = step * dimension if step > 1 else dimension
    example = torch.zeros(2, model.in_channels, *size)
    try:
        with torch.no_grad(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            # Traced here, because the ONNX exporter's own tracing would fix the sizes.
            traced = torch.export.export(model, (example,), dynamic_shapes=(shape,))
            program = torch.onnx.export(
                traced,
                input_names=["image"],
                output_names=["logits"],
                dynamic_shapes=(shape,),  # for the names of the free axes
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
    except MedsegError:
        raise
    except Exception as error:  # tracing can raise any exception of the model's code
        reason = str(error.__cause__ or error).strip().partition("\n")[0]
        fix = "Omit --dynamic" if dynamic else "Predict with medseg"
        what = f"this model has no ONNX form{' with free sizes' if dynamic else ''} ({reason})"
        raise ModelError(error_message(type(model).__name__, what, fix=fix)) from None
    assert program is not None
    return _annotated(program.model_proto, notes)


def require_size(model: Model, where: str | Path) -> None:
    """Raise `ModelError` if the weights of a model are too large for one ONNX file."""
    size = 4 * sum(tensor.numel() for tensor in model.state_dict().values())
    if size > LARGEST:
        fix = "Predict with medseg"
        raise ModelError(
            error_message(
                where, "bytes of weights", found=f"{size:,}", expected=f"at most {LARGEST:,}", fix=fix
            )
        )


def _annotated(graph: Any, notes: Mapping[str, str]) -> Any:
    """Set the metadata, and remove the exporter's own, which contains paths of the exporting machine."""
    inner = graph.graph
    for part in (inner, *inner.node, *inner.input, *inner.output, *inner.value_info, *inner.initializer):
        del part.metadata_props[:]
    del graph.metadata_props[:]
    for key, value in notes.items():
        graph.metadata_props.add(key=key, value=value)
    return graph
