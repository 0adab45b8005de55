"""MaskFormer and Mask2Former: networks of the transformers package as models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    DetrConfig,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    MaskFormerConfig,
    MaskFormerForInstanceSegmentation,
    ResNetConfig,
    SwinConfig,
)
from transformers.utils import logging as transformers_logging

from medseg.models.base import Model, autocast_disabled
from medseg.models.detections import Detections, instance_targets
from medseg.models.layers.memory_format import crop_to, match_model_format, pad_to, round_up
from medseg.models.maskformer.config import Mask2FormerOptions, MaskFormerOptions, MaskTransformerFields
from medseg.models.maskformer.outputs import FLOOR, Panoptic, panoptic, query_instances, semantic_scores
from medseg.models.maskformer.query_label_sets import (
    LossWeights,
    OpenVoxels,
    Points,
    QuerySetLosses,
    binary_cross_entropies,
    focal_losses,
)
from medseg.models.maskformer.query_losses import average_targets, rank_mean_class_loss
from medseg.models.pretrained.loading import WeightMapping, load_pretrained
from medseg.models.pretrained.zoos.transformers_names import ENCODER, MASKFORMER_RENAMES, SWIN_RENAMES

_STAGES = ["stage1", "stage2", "stage3", "stage4"]

MASK2FORMER_WEIGHTS = WeightMapping(
    prefixes=(
        ("", ""),
        ("", "network."),
        ("", ENCODER),
        ("resnet.", ENCODER),
        ("swin.", f"{ENCODER}swin."),
    ),
    heads=("network.class_predictor.", "network.criterion."),
    stems=("embedder.convolution.weight", "patch_embeddings.projection.weight"),
    optional=("hidden_states_norms",),
    renames=SWIN_RENAMES,
)

MASKFORMER_WEIGHTS = replace(MASK2FORMER_WEIGHTS, renames=MASKFORMER_RENAMES)

Layer = tuple[Tensor, Tensor]
"""Class logits (n q k+1) and mask logits (n q x/4 y/4) of one decoder layer."""


class MaskTransformer(Model):
    """MaskFormer (Cheng et al. 2021) or Mask2Former (Cheng et al. 2022) for images (n c x y).

    All classes are labels of the network, background included. `network` is transformers' own, so its weights load without
    conversion.

    Args:
        config: Losses and thresholds.
        network: Network of transformers; its criterion computes the losses.
        layers: Function that runs the network on an image and returns the predictions of its decoder layers in order.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.

    Examples:
        >>> import torch
        >>> from medseg.models import MaskTransformer, build_model
        >>> small = {"depths": [1] * 4, "widths": [8, 16, 32, 64], "hidden_channels": 64, "num_queries": 5, "decoder_layers": 1}
        >>> model = build_model("maskformer_resnet_18", in_channels=1, num_classes=2, **small).eval()
        >>> isinstance(model, MaskTransformer), model(torch.zeros(1, 1, 32, 32)).shape
        (True, torch.Size([1, 2, 32, 32]))
    """

    pretrained_part = ENCODER.removesuffix(".")
    computes_own_losses = True
    learns_label_sets = True

    def __init__(
        self,
        config: MaskTransformerFields,
        network: Any,
        layers: Callable[[Any, Tensor, bool], list[Layer]],
        *,
        in_channels: int,
        num_classes: int,
    ) -> None:
        super().__init__(spatial_dims=2, in_channels=in_channels, num_classes=num_classes, divisor=(32, 32))
        self.config = config
        self.network = network
        network.criterion.get_num_masks = average_targets
        network.criterion.loss_labels = rank_mean_class_loss(network.criterion)
        self._layers = layers

    def forward(self, image: Tensor) -> Tensor:
        """Return log-probabilities: the semantic scores of the queries, scaled to the sum 1.

        Args:
            image: Images (n c x y).

        Returns:
            Log-probabilities (n k x y).

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        maps = []
        for classes, masks in self._predict(image):
            with autocast_disabled(image):
                scores = semantic_scores(classes, masks).clamp(min=FLOOR)
            maps.append((scores / scores.sum(dim=0, keepdim=True)).log())
        return torch.stack(maps)

    def losses(self, image: Tensor, label: Tensor, instances: Tensor | None = None) -> dict[str, Tensor]:
        """Return the weighted losses of classes and masks.

        Args:
            image: Images (n c x y).
            label: Class indices (n 1 x y), int64; with `label_sets`, also the values of sets of classes.
            instances: None, or an instance map (n 1 x y); see `instance_targets`.

        Returns:
            The losses by name; with ``auxiliary_losses: true`` also those of the other decoder layers. If some voxels may belong
            to several classes, they are those of `medseg.models.maskformer.query_label_sets`.

        Raises:
            ModelError: Shapes or labels do not fit.
        """
        self.check_image(image)
        self.check_label(image, label, instances)
        if instances is None and self.config.target_masks == "classes":
            instances = torch.zeros_like(label)
        size = self._padded_size(image)
        label = pad_to(label, size)
        instances = None if instances is None else pad_to(instances, size)
        if self.label_sets is not None:
            return self._set_losses(image, OpenVoxels(label, self.label_sets), instances)
        targets = instance_targets(
            label,
            instances,
            num_classes=self.num_classes,
            limit=self.config.num_queries,
            regions=True,
        )
        *inner, (classes, masks) = self._run(image, auxiliary=self.config.auxiliary_losses)
        with autocast_disabled(image):
            losses: dict[str, Tensor] = self.network.get_loss_dict(
                masks,
                classes,
                [target.masks.float() for target in targets],
                [target.classes for target in targets],
                [{"class_queries_logits": c, "masks_queries_logits": m} for c, m in inner] or None,
            )
        return {name.removeprefix("loss_"): loss for name, loss in losses.items()}

    def _set_losses(self, image: Tensor, voxels: OpenVoxels, instances: Tensor | None) -> dict[str, Tensor]:
        """Return the losses where some voxels may belong to several classes."""
        config = self.config
        targets = voxels.targets(instances, config.num_queries)
        layers = self._run(image, auxiliary=config.auxiliary_losses)
        weights = LossWeights(
            config.class_weight, config.mask_weight, config.dice_weight, config.no_object_weight
        )
        points = self._uncertain_points() if isinstance(config, Mask2FormerOptions) else None
        compute = QuerySetLosses(weights, focal_losses if points is None else binary_cross_entropies, points)
        losses: dict[str, Tensor] = {}
        with autocast_disabled(image):
            for number, (classes, masks) in enumerate([layers[-1], *layers[:-1]]):
                found = compute(classes, masks, targets, voxels)
                end = f"_{number - 1}" if number else ""
                losses |= {f"{name}{end}": loss for name, loss in found.items()}
        return losses

    def _uncertain_points(self) -> Points:
        """Return Mask2Former's choice of points, most of them where masks are uncertain."""
        criterion = self.network.criterion
        return lambda logits: criterion.sample_points_using_uncertainty(
            logits,
            criterion.calculate_uncertainty,
            criterion.num_points,
            criterion.oversample_ratio,
            criterion.importance_sample_ratio,
        )

    @torch.no_grad()
    def instances(self, image: Tensor) -> list[Detections]:
        """Return the instances detected in each image; their masks may overlap.

        Args:
            image: Images (n c x y).

        Returns:
            One entry per image.

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        return [
            query_instances(
                classes,
                masks,
                threshold=self.config.score_threshold,
                mask_threshold=self.config.mask_threshold,
            )
            for classes, masks in self._predict(image)
        ]

    @torch.no_grad()
    def panoptic(self, image: Tensor) -> list[Panoptic]:
        """Return the panoptic map of each image; its regions, background included, do not overlap.

        Args:
            image: Images (n c x y).

        Returns:
            One map per image.

        Raises:
            ModelError: Axes, channels or size do not fit.
        """
        return [
            panoptic(
                classes,
                masks,
                threshold=self.config.score_threshold,
                mask_threshold=self.config.mask_threshold,
                overlap_threshold=self.config.overlap_threshold,
                fuse=frozenset(self.config.fused_classes),
            )
            for classes, masks in self._predict(image)
        ]

    def check_image(self, image: Tensor) -> None:
        """Raise `ModelError` if the image does not fit, or if a batch norm would see a single value per channel."""
        super().check_image(image)
        if self.config.backbone == "resnet":
            self.require_several_values(image, 32)

    def _run(self, image: Tensor, *, auxiliary: bool) -> list[Layer]:
        padded = pad_to(match_model_format(image, self), self._padded_size(image))
        layers = self._layers(self.network, padded, auxiliary)
        return [(classes.float(), masks.float()) for classes, masks in layers]

    def _predict(self, image: Tensor) -> Iterator[Layer]:
        """Yield class logits (q k+1) and mask logits (q x y) on the image's grid, one image at a time to save memory."""
        self.check_image(image)
        size = self._padded_size(image)
        classes, masks = self._run(image, auxiliary=False)[-1]
        for of_classes, of_masks in zip(classes, masks, strict=True):
            fine = F.interpolate(of_masks[None], size=size, mode="bilinear", align_corners=False)
            yield of_classes, crop_to(fine, (image.shape[2], image.shape[3]))[0]

    def _padded_size(self, image: Tensor) -> tuple[int, ...]:
        return round_up((image.shape[2], image.shape[3]), self.divisor)


def maskformer(config: MaskFormerOptions, in_channels: int, num_classes: int) -> MaskTransformer:
    """Return a MaskFormer with fresh weights."""
    settings = MaskFormerConfig(
        backbone_config=_backbone(config, in_channels),
        decoder_config=DetrConfig(
            d_model=config.hidden_channels,
            num_queries=config.num_queries,
            dropout=config.dropout,
            decoder_layers=config.decoder_layers,
            decoder_ffn_dim=config.decoder_width,
            decoder_attention_heads=config.attention_heads,
            encoder_attention_heads=config.attention_heads,
        ),
        fpn_feature_size=config.hidden_channels,
        mask_feature_size=config.hidden_channels,
        num_labels=num_classes,
        no_object_weight=config.no_object_weight,
        cross_entropy_weight=config.class_weight,
        mask_weight=config.mask_weight,
        dice_weight=config.dice_weight,
    )
    network = MaskFormerForInstanceSegmentation(settings)
    # As in the paper's code: queries that start nearly equal stay nearly equal for hundreds of steps.
    nn.init.normal_(network.model.transformer_module.queries_embedder.weight)
    return MaskTransformer(
        config, network, _maskformer_layers, in_channels=in_channels, num_classes=num_classes
    )


def mask2former(config: Mask2FormerOptions, in_channels: int, num_classes: int) -> MaskTransformer:
    """Return a Mask2Former with fresh weights, without the unused last norm of a Swin transformer."""
    settings = _without_backbone_warning(
        lambda: Mask2FormerConfig(
            backbone_config=_backbone(config, in_channels),
            feature_size=config.hidden_channels,
            mask_feature_size=config.hidden_channels,
            hidden_dim=config.hidden_channels,
            encoder_layers=config.encoder_layers,
            encoder_feedforward_dim=config.encoder_width,
            decoder_layers=config.decoder_layers,
            dim_feedforward=config.decoder_width,
            num_attention_heads=config.attention_heads,
            num_queries=config.num_queries,
            train_num_points=config.num_points,
            num_labels=num_classes,
            no_object_weight=config.no_object_weight,
            class_weight=config.class_weight,
            mask_weight=config.mask_weight,
            dice_weight=config.dice_weight,
            use_auxiliary_loss=True,
        )
    )
    network = Mask2FormerForUniversalSegmentation(settings)
    if config.backbone == "swin":
        # An unused parameter would be saved and counted, and would make distributed training fail.
        network.model.pixel_level_module.encoder.swin.layernorm = nn.Identity()
    return MaskTransformer(
        config, network, _mask2former_layers, in_channels=in_channels, num_classes=num_classes
    )


def _maskformer_layers(network: Any, image: Tensor, auxiliary: bool) -> list[Layer]:
    """Return the predictions of the decoder layers, each after the decoder's norm; without `auxiliary`, the last only."""
    out = network.model(image, output_hidden_states=auxiliary, return_dict=True)
    states = [out.transformer_decoder_last_hidden_state]
    if auxiliary:
        norm = network.model.transformer_module.decoder.layernorm
        # The first state is the initial queries; the last is that of the last layer, already normalised.
        states = [norm(state) for state in out.transformer_decoder_hidden_states[1:-1]] + states
    voxels = out.pixel_decoder_last_hidden_state
    return [
        (network.class_predictor(state), torch.einsum("nqc,ncxy->nqxy", network.mask_embedder(state), voxels))
        for state in states
    ]


def _mask2former_layers(network: Any, image: Tensor, auxiliary: bool) -> list[Layer]:
    """Return the predictions of the initial queries and of all decoder layers; without `auxiliary`, the last only.

    All are computed in any case, as each layer needs the masks of the previous one.
    """
    out = network(image, output_auxiliary_logits=True)
    last = (out.class_queries_logits, out.masks_queries_logits)
    inner = [(one["class_queries_logits"], one["masks_queries_logits"]) for one in out.auxiliary_logits]
    return [*inner, last] if auxiliary else [last]


def _backbone(config: MaskTransformerFields, in_channels: int) -> ResNetConfig | SwinConfig:
    if config.backbone == "resnet":
        return ResNetConfig(
            num_channels=in_channels,
            embedding_size=config.stem_channels,
            depths=list(config.depths),
            hidden_sizes=list(config.widths),
            layer_type=config.block,
            out_features=_STAGES,
        )
    return SwinConfig(
        num_channels=in_channels,
        embed_dim=config.widths[0],
        depths=list(config.depths),
        num_heads=list(config.swin_heads),
        window_size=config.window_size,
        drop_path_rate=config.drop_path,
        out_features=_STAGES,
    )


def _without_backbone_warning(make: Callable[[], Mask2FormerConfig]) -> Mask2FormerConfig:
    """Call `make` without the warning of transformers that a ResNet is not an expected backbone."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        return make()
    finally:
        transformers_logging.set_verbosity(before)


def build_maskformer(
    options: MaskFormerOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MaskTransformer:
    """Build MaskFormer, with pretrained weights where the options name some."""
    return load_pretrained(maskformer(options, in_channels, num_classes), options, MASKFORMER_WEIGHTS)


def build_mask2former(
    options: Mask2FormerOptions, *, in_channels: int, num_classes: int, spatial_dims: int
) -> MaskTransformer:
    """Build Mask2Former, with pretrained weights where the options name some."""
    return load_pretrained(mask2former(options, in_channels, num_classes), options, MASK2FORMER_WEIGHTS)
