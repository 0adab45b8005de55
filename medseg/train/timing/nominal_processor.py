"""The processor that plans and estimates assume, so that they depend on no machine and on no other program.

Free of torch.
"""

from __future__ import annotations

GFLOPS_PER_CORE = 40.0
"""Billions of floating-point operations per second and core of a training, patches and validations included.

Steps alone were measured at 48 to 79 per second of processor time on one core of a Xeon at 2.5 GHz with AVX-512, for planned
U-Nets of 16 or 32 first channels in 2D and 3D (``benchmarks/nominal_processor.py``).
"""
CORES = 2
MEMORY = "8GB"
BACKWARD_COST = 2
"""Arithmetic of the backward pass, relative to the forward pass: gradients of the input and of the weights."""
LEAST_STEPS = 500
"""Steps below which a training counts as too short to learn much."""


def step_seconds(forward_flops: float, batch: int, cores: int = CORES) -> float:
    """Return the time of a training step on nominal cores.

    Args:
        forward_flops: Floating-point operations of the forward pass of one patch.
        batch: Patches per step.
        cores: Number of cores.

    Returns:
        Seconds.

    >>> step_seconds(20e9, batch=2)
    1.5
    """
    return forward_flops * (1 + BACKWARD_COST) * batch / (GFLOPS_PER_CORE * 1e9 * cores)


def nominal_cores_in_words(cores: int = CORES) -> str:
    """Return the processor in words."""
    return f"{cores} core{'s' if cores != 1 else ''} of {GFLOPS_PER_CORE:g} GFLOP/s"
