"""Mask R-CNN: torchvision's proposal network and heads as a model, for any backbone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNN as TorchvisionMaskRCNN
from torchvision.models.detection.roi_heads import paste_masks_in_image

from medseg.errors import ModelError, error_message
from medseg.models.base import Model, autocast_disabled
from medseg.models.detections import Detections, Targets, instance_targets
from medseg.models.layers.memory_format import match_model_format, pad_to, round_up
from medseg.models.mask_rcnn.box_convention import anchor_generator
from medseg.models.mask_rcnn.config import MaskRCNNFields
from medseg.models.mask_rcnn.heads import Heads

MAX_OBJECTS = 200
"""Maximum number of target instances per image; the largest are kept, so that noisy label maps stay affordable."""

FLOOR = 1e-6
"""Minimum evidence of a class, so that its logarithm is finite."""

Maps = dict[str, Tensor]
Found = dict[str, Tensor]


class MaskRCNN(Model):
    """Mask R-CNN (He et al. 2017) for images (n c x y): boxes, classes and masks, and a semantic map computed from them.

    Parameter names are torchvision's, so its weights load without conversion. Images are neither resized nor normalised.

    Args:
        config: Anchors, proposals and thresholds.
        backbone: Module that maps images to named feature maps, with their channels as ``out_channels``.
        heads: Box and mask heads; see `medseg.models.mask_rcnn.heads`.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included; at least 2.
        stride: Stride of the coarsest map that the backbone computes by striding.
        norm_stride: Stride of the deepest map with a batch norm; None if there is none.

    Raises:
        ModelError: There is no foreground class.

    Examples:
        >>> import torch
        >>> from medseg.models import MaskRCNN, build_model
        >>> small = {"depths": [1, 1, 1, 1], "width_per_group": 4, "box_head_width": 16, "mask_head_widths": [8]}
        >>> model = build_model("mask_rcnn_resnet_50_fpn", in_channels=1, num_classes=2, **small).eval()
        >>> isinstance(model, MaskRCNN), model(torch.zeros(1, 1, 32, 32)).shape
        (True, torch.Size([1, 2, 32, 32]))
    """

    pretrained_part = "backbone.body"
    computes_own_losses = True

    def __init__(
        self,
        config: MaskRCNNFields,
        backbone: nn.Module,
        heads: Heads,
        *,
        in_channels: int,
        num_classes: int,
        stride: int,
        norm_stride: int | None,
    ) -> None:
        super().__init__(
            spatial_dims=2, in_channels=in_channels, num_classes=num_classes, divisor=(stride, stride)
        )
        if num_classes < 2:
            fix = "Count the background as class 0"
            raise ModelError(
                error_message("MaskRCNN", "classes", found=num_classes, expected="2 or more", fix=fix)
            )
        self.config = config
        self.norm_stride = norm_stride
        self.backbone = backbone
        parts = _assemble(config, backbone, heads)
        self.rpn, self.roi_heads = parts.rpn, parts.roi_heads

    def forward(self, image: Tensor) -> Tensor:
        """Return log-probabilities computed from the detections.

        The evidence of a foreground class is the largest score times mask probability of its instances. The evidence of
        the background is one minus the largest evidence. The evidences are scaled to the sum 1, so a voxel is
        foreground where the score times mask probability of an instance exceeds one half.

        Args:
            image: Images (n c x y).

        Returns:
            Log-probabilities (n k x y).

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        maps, padded = self._features(image)
        if image.is_meta:
            self._worst_case(maps)
            return image.new_empty((image.shape[0], self.num_classes, *image.shape[2:]))
        return torch.stack(
            [self._log_probabilities(found, image) for found in self._detect(maps, padded, image)]
        )

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the five losses of Mask R-CNN.

        Args:
            image: Images (n c x y).
            label: Class indices (n 1 x y), int64.
            instances: None, or an instance map (n 1 x y); see `instance_targets`. An image may have no instances.

        Returns:
            The losses by name: objectness and boxes of the proposals; class, box and mask of the instances.

        Raises:
            ModelError: Shapes or labels do not fit.
        """
        self.check_image(image)
        self.check_label(image, label, instances)
        targets = instance_targets(label, instances, num_classes=self.num_classes, limit=MAX_OBJECTS)
        maps, padded = self._features(image)
        wanted = [_torchvision_target(target) for target in targets]
        with autocast_disabled(image), self._training(True):
            images = _image_list(padded, image)
            proposals, proposal_losses = self.rpn(images, maps, wanted)
            _, object_losses = self.roi_heads(maps, proposals, images.image_sizes, wanted)
        losses = {**proposal_losses, **object_losses}
        return {name.removeprefix("loss_"): loss for name, loss in losses.items()}

    @torch.no_grad()
    def instances(self, image: Tensor) -> list[Detections]:
        """Return the instances detected in each image.

        Args:
            image: Images (n c x y).

        Returns:
            One entry per image.

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        maps, padded = self._features(image)
        return [
            Detections(
                scores=found["scores"],
                classes=found["labels"],
                boxes=_swap_axes(found["boxes"]),
                masks=_paste(found, image)[:, 0] > self.config.mask_threshold,
            )
            for found in self._detect(maps, padded, image)
        ]

    def _features(self, image: Tensor) -> tuple[Maps, Tensor]:
        """Return the backbone's maps in float32, and the padded image."""
        self.check_image(image)
        size = round_up((image.shape[2], image.shape[3]), self.divisor)
        padded = pad_to(match_model_format(image, self), size)
        return {name: x.float() for name, x in self.backbone(padded).items()}, padded

    def check_image(self, image: Tensor) -> None:
        """Raise `ModelError` if the image does not fit, or if a batch norm would see a single value per channel."""
        super().check_image(image)
        if self.norm_stride is not None:
            self.require_several_values(image, self.norm_stride)

    def _detect(self, maps: Maps, padded: Tensor, image: Tensor) -> list[Found]:
        """Return torchvision's detections of each image: scores, labels, boxes and masks of a fixed small size."""
        images = _image_list(padded, image)
        with autocast_disabled(image), self._training(False):
            proposals, _ = self.rpn(images, maps)
            found: list[Found] = self.roi_heads(maps, proposals, images.image_sizes)[0]
        return found

    def _log_probabilities(self, found: Found, image: Tensor) -> Tensor:
        """Return the semantic map (k x y) of one image's detections."""
        weighed = _paste(found, image)[:, 0] * found["scores"][:, None, None]
        evidence = weighed.new_zeros((self.num_classes, *image.shape[2:]))
        for k in found["labels"].unique().tolist():
            evidence[k] = weighed[found["labels"] == k].amax(dim=0)
        evidence[0] = 1 - evidence.amax(dim=0)
        evidence = evidence.clamp(min=FLOOR)
        return (evidence / evidence.sum(dim=0, keepdim=True)).log()

    def _worst_case(self, maps: Maps) -> None:
        """Run every part on the maximum number of proposals and instances, for tensors without values."""
        self.rpn.head(list(maps.values()))
        heads, n = self.roi_heads, len(next(iter(maps.values())))
        for pool, head, predictor, count in (
            (heads.box_roi_pool, heads.box_head, heads.box_predictor, self.config.proposals_test),
            (heads.mask_roi_pool, heads.mask_head, heads.mask_predictor, self.config.max_detections),
        ):
            first = maps[pool.featmap_names[0]]
            predictor(head(first.new_empty((n * count, first.shape[1], *pool.output_size))))

    @contextmanager
    def _training(self, training: bool) -> Iterator[None]:
        """Set whether the two parts assign targets or detect, independently of the mode of the model."""
        parts = (self.rpn, self.roi_heads)
        before = [part.training for part in parts]
        for part in parts:
            part.training = training
        try:
            yield
        finally:
            for part, mode in zip(parts, before, strict=True):
                part.training = mode


def _assemble(config: MaskRCNNFields, backbone: nn.Module, heads: Heads) -> TorchvisionMaskRCNN:
    """Return torchvision's model; only its proposal network and heads are used."""
    return TorchvisionMaskRCNN(
        backbone,
        rpn_anchor_generator=anchor_generator(config),
        rpn_pre_nms_top_n_train=config.proposals_before_nms_train,
        rpn_pre_nms_top_n_test=config.proposals_before_nms_test,
        rpn_post_nms_top_n_train=config.proposals_train,
        rpn_post_nms_top_n_test=config.proposals_test,
        rpn_batch_size_per_image=config.sampled_anchors_per_image,
        box_batch_size_per_image=config.sampled_proposals_per_image,
        box_roi_pool=heads.box_pool,
        box_head=heads.box_head,
        box_predictor=heads.box_predictor,
        box_score_thresh=config.score_threshold,
        box_nms_thresh=config.nms_threshold,
        box_detections_per_img=config.max_detections,
        mask_roi_pool=heads.mask_pool,
        mask_head=heads.mask_head,
        mask_predictor=heads.mask_predictor,
    )


def _image_list(padded: Tensor, image: Tensor) -> ImageList:
    """Return the padded images with the sizes to which boxes are clipped."""
    return ImageList(padded, [(image.shape[2], image.shape[3])] * len(image))


def _swap_axes(boxes: Tensor) -> Tensor:
    """Convert corners between array order and torchvision's order, whose first coordinate is the last axis."""
    return boxes[:, [1, 0, 3, 2]]


def _torchvision_target(target: Targets) -> Found:
    return {
        "boxes": _swap_axes(target.boxes),
        "labels": target.classes,
        "masks": target.masks.to(torch.uint8),
    }


def _paste(found: Found, image: Tensor) -> Tensor:
    """Return the mask probabilities (d 1 x y) on the image's grid."""
    pasted: Tensor = paste_masks_in_image(found["masks"], found["boxes"], (image.shape[2], image.shape[3]))
    return pasted
