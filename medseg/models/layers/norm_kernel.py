"""Triton kernels of `medseg.models.layers.fused_norm`; importing this module needs Triton.

A channel of a sample is one row of voxels. Each program works on one part of a row, so that few long rows occupy the
whole device. `partial_moments` reads the input once; `normalise` reads it a second time and writes the result.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def partial_moments(x, moments, voxels, part, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Write the mean of one part of a row, and the sum of squares about that mean.

    A launch passes

    - `x`: Rows of voxels, contiguous.
    - `moments`: Float32 output `(rows, parts, 2)`.
    - `voxels`: Voxels of a row.
    - `part`: Voxels of a part, a multiple of BLOCK.
    - `BLOCK`: Voxels that are read at a time.
    """
    row = tl.program_id(0)
    number = tl.program_id(1)
    start = number * part
    count = tl.minimum(voxels - start, part)
    source = x + row.to(tl.int64) * voxels + start
    # Squares about the first voxel keep their digits where the mean is large.
    shift = tl.load(source).to(tl.float32)
    lanes = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    square = tl.zeros((BLOCK,), tl.float32)
    for first in range(0, count, BLOCK):
        inside = first + lanes < count
        values = tl.load(source + first + lanes, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - shift, 0.0)
        total += values
        square += values * values
    sum_of_values = tl.sum(total, axis=0)
    mean = sum_of_values / count
    target = moments + (row * tl.num_programs(1) + number) * 2
    tl.store(target, shift + mean)
    tl.store(target + 1, tl.sum(square, axis=0) - sum_of_values * mean)


@triton.jit  # type: ignore[untyped-decorator]
def normalise(  # type: ignore[no-untyped-def]
    x,
    moments,
    weight,
    bias,
    out,
    voxels,
    part,
    channels,
    parts,
    eps,
    slope,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Write the normalised, scaled and activated values of one part of a row.

    A launch passes

    - `x`: Rows of voxels, contiguous.
    - `moments`: What `partial_moments` wrote.
    - `weight`: Scale of each channel.
    - `bias`: Shift of each channel.
    - `out`: Output, like `x`.
    - `voxels`: Voxels of a row.
    - `part`: Voxels of a part, a multiple of BLOCK.
    - `channels`: Number of channels.
    - `parts`: Number of parts of a row.
    - `eps`: Constant added to the variance.
    - `slope`: Factor of negative values.
    - `PARTS`: Power of 2, at least `parts`.
    - `BLOCK`: Voxels that are read at a time.
    """
    row = tl.program_id(0)
    number = tl.program_id(1)
    # The parts' moments are joined as by Chan et al. 1979; every program of a row computes the same two numbers.
    each = tl.arange(0, PARTS)
    held = each < parts
    source = moments + (row * parts + each) * 2
    means = tl.load(source, mask=held, other=0.0)
    squares = tl.load(source + 1, mask=held, other=0.0)
    counts = tl.where(held, tl.minimum(voxels - each * part, part), 0).to(tl.float32)
    first_mean = tl.load(moments + row * parts * 2)
    mean = first_mean + tl.sum(tl.where(held, counts * (means - first_mean), 0.0), axis=0) / voxels
    distance = tl.where(held, means - mean, 0.0)
    variance = (tl.sum(squares, axis=0) + tl.sum(counts * distance * distance, axis=0)) / voxels
    channel = row % channels
    scale = tl.load(weight + channel).to(tl.float32) / tl.sqrt(tl.maximum(variance, 0.0) + eps)
    offset = tl.load(bias + channel).to(tl.float32)
    start = number * part
    count = tl.minimum(voxels - start, part)
    base = row.to(tl.int64) * voxels + start
    lanes = tl.arange(0, BLOCK)
    for first in range(0, count, BLOCK):
        inside = first + lanes < count
        values = tl.load(x + base + first + lanes, mask=inside, other=0.0).to(tl.float32)
        values = (values - mean) * scale + offset
        values = tl.where(values < 0, values * slope, values)
        tl.store(out + base + first + lanes, values.to(out.dtype.element_ty), mask=inside)
