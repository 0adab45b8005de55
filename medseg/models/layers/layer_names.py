"""Names of norms, activations and sampling layers, as configurations give them. Free of torch."""

from __future__ import annotations

from typing import Literal

Norm = Literal["batch", "group", "instance", "layer", "none"]
Act = Literal["relu", "leaky_relu", "gelu", "silu"]
Downsample = Literal["conv", "maxpool", "avgpool"]
Upsample = Literal["transpose", "linear", "nearest", "pixelshuffle"]
