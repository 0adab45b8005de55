"""From the short form of a U-Net to its list of stages. Free of torch."""

from __future__ import annotations

from collections.abc import Sequence

from medseg.models.unet.fields import PerAxis, Stage

SHORT_FORM = ("channels", "num_blocks", "kernel_size", "strides", "dropout")
DEFAULT_CHANNELS = (32, 64, 128, 256)


def expand_encoder(
    *,
    channels: tuple[int, ...] | None,
    num_blocks: int | tuple[int, ...] | None,
    kernel_size: int | tuple[PerAxis, ...] | None,
    strides: int | tuple[PerAxis, ...] | None,
    dropout: float | None,
    default_kernel: int,
) -> tuple[Stage, ...]:
    """Return the encoder stages of the short form; a list must have one entry per stage.

    Raises:
        ValueError: a list has another length.
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
    """Decoder stages, deepest first: the encoder's without the deepest, with stride 1."""
    return tuple(stage.replace(stride=1) for stage in reversed(encoder[:-1]))


def with_num_blocks(decoder: tuple[Stage, ...], num_blocks: int | tuple[int, ...]) -> tuple[Stage, ...]:
    """Return `decoder` with other numbers of blocks, deepest first.

    Raises:
        ValueError: a list does not have one entry per decoder level.
    """
    counts = num_blocks if isinstance(num_blocks, tuple) else (num_blocks,) * len(decoder)
    _require_length("decoder_num_blocks", counts, len(decoder), "decoder level, deepest first")
    return tuple(stage.replace(num_blocks=count) for stage, count in zip(decoder, counts, strict=True))


def _require_length(key: str, values: Sequence[object], n: int, each: str) -> None:
    if len(values) != n:
        raise ValueError(f"{key} has {len(values)} entries, expected {n}: one per {each}")
