"""Keys of configurations that were renamed, so that an old key is answered with the new one."""

from __future__ import annotations

RENAMED: dict[str, tuple[str, ...]] = {
    "train.budget": ("max_time",),
    "train.accumulate": ("gradient_accumulation",),
    "train.ema": ("ema_decay",),
    "train.patience": ("early_stopping_patience",),
    "train.foreground": ("oversample_foreground",),
    "train.optimizer.backbone_lr": ("backbone_lr_factor",),
    "train.optimizer.layer_decay": ("layerwise_lr_decay",),
    "train.optimizer.decay": ("weight_decay_on",),
    "train.optimizer.decay_share": ("decay_fraction",),
    "data.partial": ("partially_annotated",),
    "data.regions.*.written": ("output_value",),
    "previous": ("cascade",),
    "cascade.run": ("first_stage",),
    "cascade.augment": ("perturb",),
    "cascade.perturb.reshape_p": ("morphology_p",),
    "cascade.perturb.reshape_label_p": ("morphology_label_p",),
    "cascade.perturb.remove_below": ("remove_below_fraction",),
    "augment.in_plane": ("dummy_2d_axis",),
    "predict.instance_score": ("min_instance_score",),
    "predict.link.min_inside": ("min_containment",),
    "predict.link.longest_piece": ("max_fragment_slices",),
    "predict.link.gap": ("max_gap_slices",),
    "slices.copies": ("repeats",),
    "slices.displayed": ("radiological_view",),
    "slices.windows": ("ct_windows",),
    "model.queries": ("num_queries",),
    "model.points": ("num_points",),
    "model.proposals": ("proposals_train", "proposals_test"),
    "model.proposals_before_nms": ("proposals_before_nms_train", "proposals_before_nms_test"),
    "model.window": ("attention_window",),
    "model.heads": ("swin_heads",),
    "model.pyramid": ("feature_pyramid",),
    "model.targets": ("target_masks",),
    "model.fuse": ("fused_classes",),
    "model.form": ("feature_map",),
    "model.anchors_sampled": ("sampled_anchors_per_image",),
    "model.boxes_sampled": ("sampled_proposals_per_image",),
    "model.box_width": ("box_head_width",),
    "model.mask_widths": ("mask_head_widths",),
}
"""New names of the last part of a key, by the old key; ``*`` stands for any part. A second new name means that the
values of an old pair are two settings now."""


def renamed(key: str) -> tuple[str, ...]:
    """Return the new name of a key.

    Args:
        key: Dotted key, from the root of an experiment or of one group of its settings.

    Returns:
        The new dotted key; two keys if it was split into two settings; empty if it was not renamed.

    >>> renamed("train.budget")
    ('train.max_time',)
    >>> renamed("previous.augment.reshape_p")
    ('cascade.perturb.morphology_p',)
    >>> renamed("copies")
    ('repeats',)
    >>> renamed("train.steps")
    ()
    """
    *groups, last = key.split(".")
    parents: list[str] = []
    for group in groups:
        parents.append((_new_names([*parents, group], from_root=True) or (group,))[0])
    new = _new_names([*parents, last], from_root=True) or _new_names([*groups, last], from_root=False)
    if not new and parents == groups:
        return ()
    return tuple(".".join([*parents, name]) for name in new or (last,))


def _new_names(parts: list[str], *, from_root: bool) -> tuple[str, ...]:
    """Return the new names of the last of `parts`, which are a whole old key or, unless `from_root`, its end."""
    for old, new in RENAMED.items():
        expected = old.split(".")
        if len(expected) == len(parts) or (not from_root and len(expected) > len(parts)):
            ends = expected[-len(parts) :]
            if all(one in ("*", other) for one, other in zip(ends, parts, strict=True)):
                return new
    return ()
