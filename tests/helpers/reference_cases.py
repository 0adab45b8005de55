"""Simulated out-of-fold cases with properties and references, for quality models."""

from __future__ import annotations

import numpy as np

from medseg.inference.quality.fit_quality import ReferenceCase


def reference_cases(count: int = 200, *, folds: int = 5, seed: int = 0) -> list[ReferenceCase]:
    """Return cases whose Dice follows from the expected soft Dice and the noise, and whose volumes err by a few percent."""
    random, found = np.random.default_rng(seed), []
    for number in range(count):
        overlap, noise = float(random.normal(0.8, 0.04)), float(np.exp(random.normal(-3, 0.2)))
        volume = float(np.exp(random.normal(0.5, 0.15)))
        dice = 0.5 + 0.45 * overlap - 0.2 * (noise - 0.05) + float(random.normal(0, 0.01))
        features = {
            "noise": {"MRI": noise},
            "brightness": {"MRI": float(random.normal(0.4, 0.03))},
            "empty": {"liver": 0.0, "cyst": 1.0},
            "volume": {"liver": volume},
            "components": {"liver": float(1 + (random.random() < 0.05))},
            "border": {"liver": float(random.random() < 0.5) * 0.1 * float(random.random())},
            "expected soft Dice": {"liver": overlap},
        }
        reference = volume * float(np.exp(random.normal(0.02, 0.05)))
        volumes = {"liver": volume, "cyst": 0.0}
        found.append(
            ReferenceCase(
                f"case_{number}",
                number % folds,
                features,
                {"liver": dice},
                volumes,
                {"liver": reference, "cyst": float(number % 50 == 0)},
            )
        )
    return found
