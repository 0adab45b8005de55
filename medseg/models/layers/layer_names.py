"""Names of norms, activations and resampling layers in configurations. Free of torch."""

from __future__ import annotations

from typing import Literal

Norm = Literal["batch", "group", "instance", "layer", "none"]
Act = Literal["relu", "leaky_relu", "gelu", "silu"]
Downsample = Literal["conv", "maxpool", "avgpool"]
Upsample = Literal["transpose", "linear", "nearest", "pixelshuffle"]
