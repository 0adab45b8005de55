"""Temperature scaling: divide logits by numbers that make their probabilities as frequent as they say (Guo et al. 2017).

One temperature for all classes changes no decision, because it keeps the order of the logits. One per class, vector scaling
without bias, fits better where some labels are more overconfident than others. For classes, it is applied to the logits
less their mean, so that a number added to all logits has no effect; for regions, each output has a temperature of its own.

Guo, Pleiss, Sun, Weinberger: On calibration of modern neural networks. ICML 2017.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit, log_expit, log_softmax, softmax

from medseg.inference.uncertainty.logit_sample import VoxelSample

Temperatures = tuple[float, ...]
"""None, one, or one per output."""

LARGEST = 20.0
"""Temperatures are between this and its inverse."""
_NEAR_LIMIT = 0.01  # of the logarithm; the search for one temperature stops short of the limit


def is_at_limit(temperature: float) -> bool:
    """Return whether a temperature is the smallest or the largest that is tried, so that a better one may lie outside."""
    return abs(math.log(temperature)) > math.log(LARGEST) - _NEAR_LIMIT


def scaled(logits: NDArray[np.float32], temperatures: Temperatures, *, regions: bool) -> NDArray[np.float64]:
    """Divide logits by temperatures, as prediction does.

    Args:
        logits: Logits `(n, k)`.
        temperatures: None, one, or one per output.
        regions: Whether the outputs are regions instead of classes.

    Returns:
        Logits of the same shape.

    Examples:
        >>> scaled(np.array([[4.0, 0.0]]), (2.0,), regions=False).tolist()
        [[2.0, 0.0]]
        >>> scaled(np.array([[4.0, 0.0]]), (2.0, 1.0), regions=False).tolist()
        [[1.0, -2.0]]
    """
    values = logits.astype(np.float64)
    if not temperatures:
        return values
    if len(temperatures) > 1 and not regions:
        values = values - values.mean(-1, keepdims=True)
    return np.asarray(values / np.array(temperatures))


def probabilities(
    logits: NDArray[np.float32], temperatures: Temperatures, *, regions: bool
) -> NDArray[np.float64]:
    """Return the calibrated probabilities of logits.

    Args:
        logits: Logits `(n, k)`.
        temperatures: None, one, or one per output.
        regions: Whether the outputs are regions instead of classes.

    Returns:
        Softmax or sigmoid `(n, k)` of the scaled logits.
    """
    values = scaled(logits, temperatures, regions=regions)
    return np.asarray(expit(values) if regions else softmax(values, axis=-1))


def negative_log_likelihood(
    sample: VoxelSample, members: NDArray[np.bool_], temperatures: Temperatures, *, regions: bool
) -> float:
    """Return the weighted mean negative log-likelihood of the references, in nats.

    Args:
        sample: Voxels; there must be some.
        members: Which outputs each class index belongs to, see `output_members`.
        temperatures: None, one, or one per output.
        regions: Whether the outputs are regions instead of classes, whose likelihoods are averaged.

    Returns:
        Mean over the voxels that the sample stands for.
    """
    values = scaled(sample.logits, temperatures, regions=regions)
    inside = members[sample.reference]
    if regions:
        losses = -np.where(inside, log_expit(values), log_expit(-values)).mean(-1)
    else:
        losses = -log_softmax(values, axis=-1)[inside]
    return float(np.average(losses, weights=sample.weight))


def fit_temperature(sample: VoxelSample, members: NDArray[np.bool_], *, regions: bool) -> Temperatures:
    """Return the one temperature with the smallest negative log-likelihood.

    Args:
        sample: Voxels; there must be some.
        members: Which outputs each class index belongs to.
        regions: Whether the outputs are regions instead of classes.

    Returns:
        A tuple of one temperature.
    """
    from scipy.optimize import minimize_scalar

    def loss(log_temperature: float) -> float:
        return negative_log_likelihood(sample, members, (math.exp(log_temperature),), regions=regions)

    bound = math.log(LARGEST)
    found = minimize_scalar(loss, bounds=(-bound, bound), method="bounded", options={"xatol": 1e-4})
    return (float(math.exp(found.x)),)


def fit_temperatures(
    sample: VoxelSample, members: NDArray[np.bool_], start: Temperatures, *, regions: bool
) -> Temperatures:
    """Return the temperatures, one per output, with the smallest negative log-likelihood.

    Args:
        sample: Voxels; there must be some.
        members: Which outputs each class index belongs to.
        start: One temperature to begin with, which is kept where an output hardly occurs.
        regions: Whether the outputs are regions instead of classes.

    Returns:
        One temperature per output.
    """
    from scipy.optimize import minimize

    logits = scaled(sample.logits, (1.0,) * sample.logits.shape[1], regions=regions)
    inside = members[sample.reference].astype(np.float64)
    weight = sample.weight / sample.weight.sum()
    count = logits.shape[1]

    def loss(log_temperatures: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        values = logits * np.exp(-log_temperatures)
        if regions:
            losses = -np.where(inside > 0, log_expit(values), log_expit(-values)).mean(-1)
            slope = (expit(values) - inside) / count
        else:
            log_p = log_softmax(values, axis=-1)
            losses = -(log_p * inside).sum(-1)
            slope = np.exp(log_p) - inside
        gradient = -(weight[:, None] * slope * values).sum(0)
        return float(weight @ losses), gradient

    bound = math.log(LARGEST)
    begin = np.full(count, math.log(start[0]))
    found = minimize(loss, begin, jac=True, method="L-BFGS-B", bounds=[(-bound, bound)] * count)
    return tuple(map(float, np.exp(found.x)))
