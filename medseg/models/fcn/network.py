"""The FCN: torchvision's network as a dense model."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.segmentation.fcn import FCNHead

from medseg.models.backbones.resnet import resnet, stage_widths
from medseg.models.base import Model
from medseg.models.fcn.config import FCNOptions
from medseg.models.layers.memory_format import crop_to, match_model_format, pad_to, round_up
from medseg.models.pretrained.loading import WeightMapping, load_pretrained

WEIGHT_MAPPING = WeightMapping(
    prefixes=(("", ""), ("", "backbone.")),
    heads=("classifier.4.", "aux_classifier."),
    stems=("conv1.weight",),
)


class FCN(Model):
    """Fully convolutional network of stride 8 (Long et al. 2015) for images (n c x y).

    Parameter names are torchvision's, so its weights load without conversion.

    Args:
        config: The architecture.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.

    Examples:
        >>> import torch
        >>> from medseg.models import FCN, FCNOptions
        >>> model = FCN(FCNOptions(depths=(1, 1, 1, 1), width_per_group=4), in_channels=1, num_classes=3).eval()
        >>> model(torch.zeros(1, 1, 32, 32)).shape
        torch.Size([1, 3, 32, 32])
    """

    pretrained_part = "backbone"

    def __init__(self, config: FCNOptions, in_channels: int, num_classes: int) -> None:
        super().__init__(spatial_dims=2, in_channels=in_channels, num_classes=num_classes, divisor=(8, 8))
        self.config = config
        body = resnet(config, in_channels, dilated=(False, True, True))
        layers = {"layer4": "out"} | ({"layer3": "aux"} if config.auxiliary_head else {})
        self.backbone = IntermediateLayerGetter(body, return_layers=layers)
        _, _, third, fourth = stage_widths(config)
        self.classifier = FCNHead(fourth, num_classes)
        self.aux_classifier = FCNHead(third, num_classes) if config.auxiliary_head else None

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of an image.

        Args:
            image: Images (n c x y).

        Returns:
            Logits (n k x y).

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        return self._on_grid(self.classifier(self._features(image)["out"]), image)

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the criterion of the main head, and of the auxiliary head where there is one.

        Args:
            image: Images (n c x y).
            label: Class indices (n 1 x y), int64.
            instances: Ignored.

        Returns:
            ``loss`` of the main head, and ``auxiliary``, the weighted loss of the auxiliary head.

        Raises:
            ModelError: No criterion is set, or shapes do not fit.
        """
        criterion = self.require_criterion()
        self.check_label(image, label)
        features = self._features(image)
        logits = self._on_grid(self.classifier(features["out"]), image)
        losses = {"loss": criterion(logits.float(), label)}
        if self.aux_classifier is not None:
            auxiliary = self._on_grid(self.aux_classifier(features["aux"]), image)
            losses["auxiliary"] = criterion(auxiliary.float(), label) * self.config.auxiliary_weight
        return losses

    def _features(self, image: Tensor) -> dict[str, Tensor]:
        self.check_image(image)
        size = round_up((image.shape[2], image.shape[3]), self.divisor)
        self.require_several_values(image, 8)
        features: dict[str, Tensor] = self.backbone(pad_to(match_model_format(image, self), size))
        return features

    def _on_grid(self, coarse: Tensor, image: Tensor) -> Tensor:
        """Return logits of stride 8 upsampled to the padded grid and cropped to the image's grid."""
        size = (image.shape[2], image.shape[3])
        fine = F.interpolate(coarse, size=round_up(size, self.divisor), mode="bilinear", align_corners=False)
        return crop_to(fine, size)


def build(options: FCNOptions, *, in_channels: int, num_classes: int, spatial_dims: int) -> FCN:
    """Build the FCN, with pretrained weights where the options name some."""
    return load_pretrained(FCN(options, in_channels, num_classes), options, WEIGHT_MAPPING)
