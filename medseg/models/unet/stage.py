"""One stage of a U-Net, and the short form that expands into a list of stages. Free of torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveInt, WrapValidator

from medseg.config import Config

SHORT_FORM = ("channels", "num_blocks", "kernel_size", "strides", "dropout")
DEFAULT_CHANNELS = (32, 64, 128, 256)

Block = Literal["basic", "res", "convnext"]
SkipMerge = Literal["concat", "add"]
ResidualDownsample = Literal["avgpool", "conv"]

PerAxis = int | tuple[int, ...]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _per_axis(value: Any, *, odd: bool, what: str) -> PerAxis:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    good = all(_is_int(n) and n >= 1 and (not odd or n % 2 == 1) for n in numbers)
    if not good or (isinstance(value, (list, tuple)) and len(value) not in (2, 3)):
        raise ValueError(f"expected {what}, or one per axis")
    return value if _is_int(value) else tuple(value)


def _kernel(value: Any) -> PerAxis:
    return _per_axis(value, odd=True, what="an odd number >= 1")


def _stride(value: Any) -> PerAxis:
    return _per_axis(value, odd=False, what="a whole number >= 1")


def _kernels(value: Any) -> int | tuple[PerAxis, ...]:
    return tuple(_kernel(item) for item in value) if isinstance(value, (list, tuple)) else _kernel(value)


def _strides(value: Any) -> int | tuple[PerAxis, ...]:
    return tuple(_stride(item) for item in value) if isinstance(value, (list, tuple)) else _stride(value)


def _counts(value: Any) -> int | tuple[int, ...]:
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if not all(_is_int(n) and n >= 1 for n in numbers):
        raise ValueError("expected a whole number >= 1, or a list of them with one per stage")
    return value if _is_int(value) else tuple(value)


def _only(check: Callable[[Any], Any]) -> WrapValidator:
    """Validate by `check` alone: pydantic's own union of int and list reports one mistake as several."""

    def validate(value: Any, handler: object) -> Any:
        return check(value)

    return WrapValidator(validate)


Kernel = Annotated[PerAxis, _only(_kernel)]
Stride = Annotated[PerAxis, _only(_stride)]
Kernels = Annotated[int | tuple[PerAxis, ...], _only(_kernels)]
Strides = Annotated[int | tuple[PerAxis, ...], _only(_strides)]
Counts = Annotated[int | tuple[int, ...], _only(_counts)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class Stage(Config):
    """One resolution of the encoder or decoder of a U-Net.

    Attributes:
        channels: Channels of every block.
        num_blocks: Number of convolutions (``basic``) or blocks (``res``, ``convnext``).
        kernel_size: Odd kernel size, one number or one per axis.
        stride: Factor by which the stage reduces its input, one number or one per axis; 1 in decoders and
            bottlenecks.
        dilation: Dilation of the convolutions.
        use_attention: Whether multi-head self-attention over all voxels follows the blocks. Its cost grows with the
            square of the number of voxels, so use it on the deepest maps only.
        dropout: Probability with which a whole channel is set to zero after the first convolution of a block.

    Examples:
        >>> from medseg.models import Stage
        >>> stage = Stage(channels=32, kernel_size=[3, 3, 1], stride=2)
        >>> stage.kernel(spatial_dims=3), stage.strides(spatial_dims=3)
        ((3, 3, 1), (2, 2, 2))
    """

    channels: PositiveInt
    num_blocks: PositiveInt = 2
    kernel_size: Kernel = 3
    stride: Stride = 1
    dilation: PositiveInt = 1
    use_attention: bool = False
    dropout: Probability = 0.0

    def kernel(self, spatial_dims: int) -> tuple[int, ...]:
        """Return the kernel size, one number per axis."""
        return per_axis(self.kernel_size, spatial_dims)

    def strides(self, spatial_dims: int) -> tuple[int, ...]:
        """Return the stride, one number per axis."""
        return per_axis(self.stride, spatial_dims)

    def axis_errors(self, where: str, spatial_dims: int) -> list[str]:
        """Return one sentence per list that does not have `spatial_dims` entries.

        Args:
            where: Key of the stage, shown in the sentences.
            spatial_dims: 2 or 3.

        Returns:
            The sentences; empty if all lists fit.
        """
        return [
            f"{where}.{key}: found {list(value)}, expected one number or {spatial_dims}, one per axis."
            for key, value in (("kernel_size", self.kernel_size), ("stride", self.stride))
            if isinstance(value, tuple) and len(value) != spatial_dims
        ]


Bottleneck = Stage | Literal["infer"] | None


def per_axis(value: PerAxis, spatial_dims: int) -> tuple[int, ...]:
    """Return one number per axis; a single number is repeated, a tuple is returned unchanged."""
    return (value,) * spatial_dims if isinstance(value, int) else value


def expand_encoder(
    *,
    channels: tuple[int, ...] | None,
    num_blocks: int | tuple[int, ...] | None,
    kernel_size: int | tuple[PerAxis, ...] | None,
    strides: int | tuple[PerAxis, ...] | None,
    dropout: float | None,
    default_kernel: int,
) -> tuple[Stage, ...]:
    """Return the encoder stages of the short form.

    Args:
        channels: Channels of each stage; None for `DEFAULT_CHANNELS`.
        num_blocks: Blocks per stage, one number or one per stage; None for 2.
        kernel_size: One kernel for all stages or one per stage; None for `default_kernel`.
        strides: One stride for all stages but the first, or one per stage; None for 2.
        dropout: Dropout probability of all stages; None for 0.
        default_kernel: Kernel size where `kernel_size` is None.

    Returns:
        The stages, from the full resolution down.

    Raises:
        ValueError: A list does not have one entry per stage.
    """
    widths = DEFAULT_CHANNELS if channels is None else channels
    n = len(widths)
    if n < 2:
        raise ValueError(f"channels has {n} entries, expected at least 2: one per stage")
    blocks = num_blocks if isinstance(num_blocks, tuple) else (num_blocks or 2,) * n
    kernels = kernel_size if isinstance(kernel_size, tuple) else (kernel_size or default_kernel,) * n
    steps = strides if isinstance(strides, tuple) else (1, *[strides or 2] * (n - 1))
    lists = {"num_blocks": blocks, "kernel_size": kernels, "strides": steps}
    wrong = [f"{key} has {len(values)} entries" for key, values in lists.items() if len(values) != n]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}, expected {n}: one per stage, as channels has. null instead of a list takes the default"
        )
    return tuple(
        Stage(channels=c, num_blocks=b, kernel_size=k, stride=s, dropout=dropout or 0.0)
        for c, b, k, s in zip(widths, blocks, kernels, steps, strict=True)
    )


def mirrored(encoder: tuple[Stage, ...]) -> tuple[Stage, ...]:
    """Return the decoder stages that mirror an encoder, deepest first: all but its deepest stage, with stride 1."""
    return tuple(stage.replace(stride=1) for stage in reversed(encoder[:-1]))


def with_num_blocks(decoder: tuple[Stage, ...], num_blocks: int | tuple[int, ...]) -> tuple[Stage, ...]:
    """Return `decoder` with other numbers of blocks.

    Args:
        decoder: Decoder stages, deepest first.
        num_blocks: One number for all levels, or one per level, deepest first.

    Returns:
        The stages, deepest first.

    Raises:
        ValueError: A list does not have one entry per decoder level.
    """
    counts = num_blocks if isinstance(num_blocks, tuple) else (num_blocks,) * len(decoder)
    _require_length("decoder_num_blocks", counts, len(decoder), "decoder level, deepest first")
    return tuple(stage.replace(num_blocks=count) for stage, count in zip(decoder, counts, strict=True))


def _require_length(key: str, values: Sequence[object], n: int, each: str) -> None:
    if len(values) != n:
        raise ValueError(f"{key} has {len(values)} entries, expected {n}: one per {each}")
