"""Table of a model's parts: shapes, parameters and multiply-adds, computed without allocating tensors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from medseg.models.base import Model
from medseg.runtime.text_tables import text_table


@dataclass(frozen=True)
class Part:
    """One row of the table: a stage, a decoder level, a head.

    Attributes:
        name: Path of the module in the model.
        shape: Shape of its last output without the batch axis; None for a part that `forward` does not use.
        parameters: Number of parameters.
        multiply_adds: Multiply-adds of one pass over one image.
    """

    name: str
    shape: tuple[int, ...] | None
    parameters: int
    multiply_adds: int


@dataclass(frozen=True)
class Summary:
    """The parts of a model and their totals; ``str`` gives a table.

    Attributes:
        model: Name of the class.
        input_shape: Shape of the image, (c *spatial).
        output_shape: Shape of the logits, (k *spatial).
        parts: Rows in the order of the model's modules.
        parameters: Number of parameters of the whole model.
        multiply_adds: Multiply-adds of convolutions, matrix products and attention in one pass over one image.
    """

    model: str
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    parts: tuple[Part, ...]
    parameters: int
    multiply_adds: int

    def __str__(self) -> str:
        rows = [
            (p.name, _shape(p.shape), f"{p.parameters:,}", _with_prefix(p.multiply_adds)) for p in self.parts
        ]
        header = (self.model, "output", "parameters", "multiply-adds")
        total = ("total", _shape(self.output_shape), f"{self.parameters:,}", _with_prefix(self.multiply_adds))
        return f"input {_shape(self.input_shape)}\n{text_table([header, *rows, total], total=True)}"


def summarize(model: Model, input_shape: tuple[int, ...]) -> Summary:
    """Measure a model on an image of the given shape, using tensors without storage.

    Args:
        model: Any model; it is not changed.
        input_shape: Shape of one image, (c *spatial).

    Returns:
        The table of parts.

    Raises:
        ModelError: The shape does not fit the model.

    Examples:
        >>> from medseg.models import UNet2d, UNetConfig, summarize
        >>> table = summarize(UNet2d(UNetConfig.from_channels(1, 2, channels=(4, 8))), (1, 16, 16))
        >>> table.output_shape, len(table.parts)
        ((2, 16, 16), 4)
    """
    modules = dict(_parts(model))
    shapes: dict[str, tuple[int, ...]] = {}

    def remember(name: str) -> Any:
        def hook(module: nn.Module, args: object, output: object) -> None:
            if isinstance(output, Tensor):
                shapes[name] = tuple(output.shape[1:])

        return hook

    handles = [module.register_forward_hook(remember(name)) for name, module in modules.items()]
    training = model.training
    try:
        output, flops = _run_on_meta(model.eval(), input_shape)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    root = type(model).__name__
    parts = tuple(
        Part(name, shapes.get(name), _count(module), _operations(flops, f"{root}.{name}") // 2)
        for name, module in modules.items()
    )
    return Summary(root, tuple(input_shape), output, parts, _count(model), flops.get("Global", 0) // 2)


def _run_on_meta(model: Model, input_shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, int]]:
    """Return the shape of the output without its batch axis, and floating-point operations by module path."""
    state = {name: torch.empty_like(value, device="meta") for name, value in model.state_dict().items()}
    image = torch.empty((1, *input_shape), device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        output: Tensor = functional_call(model, state, (image,))
    flops = {str(name): sum(counts.values()) for name, counts in counter.get_flop_counts().items()}
    return tuple(output.shape[1:]), flops


def _operations(flops: dict[str, int], path: str) -> int:
    """Return the operations of a module; if it was not called itself, the sum over its outermost called parts."""
    inside = [name for name in flops if name == path or name.startswith(f"{path}.")]
    outermost = [name for name in inside if not any(name.startswith(f"{other}.") for other in inside)]
    return sum(flops[name] for name in outermost)


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a module by path; lists and models among them are replaced by their own children."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{prefix}{name}.{i}", element) for i, element in enumerate(child))
        elif isinstance(child, Model):
            yield from _parts(child, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", child


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(shape: tuple[int, ...] | None) -> str:
    return "–" if shape is None else "×".join(str(n) for n in shape)


def _with_prefix(count: int) -> str:
    """Return a number with the prefix k, M or G, such as ``1.20 M``."""
    for unit, size in (("G", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.2f} {unit}"
    return str(count)
