"""Keys of configurations that were renamed, so that an old key is answered with the new one."""

from __future__ import annotations

from collections.abc import Collection, Iterator

RENAMED: tuple[tuple[str, tuple[str, ...]], ...] = (
    ("train.budget", ("max_time",)),
    ("train.accumulate", ("gradient_accumulation",)),
    ("train.ema", ("ema_decay",)),
    ("train.patience", ("early_stopping_patience",)),
    ("train.foreground", ("oversample_foreground",)),
    ("train.optimizer.backbone_lr", ("backbone_lr_factor",)),
    ("train.optimizer.layer_decay", ("layerwise_lr_decay",)),
    ("train.optimizer.decay", ("weight_decay_on",)),
    ("train.optimizer.decay_share", ("decay_fraction",)),
    ("data.partial", ("partially_annotated",)),
    ("data.regions.*.written", ("output_value",)),
    ("previous", ("cascade",)),
    ("previous_labels", ("num_first_stage_labels",)),
    ("cascade.run", ("first_stage",)),
    ("cascade.augment", ("perturb",)),
    ("cascade.perturb.reshape_p", ("morphology_p",)),
    ("cascade.perturb.reshape_label_p", ("morphology_label_p",)),
    ("cascade.perturb.remove_below", ("remove_below_fraction",)),
    ("augment.in_plane", ("dummy_2d_axis",)),
    ("predict.instance_score", ("min_instance_score",)),
    ("predict.link.min_inside", ("min_containment",)),
    ("predict.link.longest_piece", ("max_fragment_slices",)),
    ("predict.link.gap", ("max_gap_slices",)),
    ("slices.copies", ("repeats",)),
    ("slices.displayed", ("radiological_view",)),
    ("slices.windows", ("ct_windows",)),
    ("model.queries", ("num_queries",)),
    ("model.points", ("num_points",)),
    ("model.proposals", ("proposals_train", "proposals_test")),
    ("model.proposals_before_nms", ("proposals_before_nms_train", "proposals_before_nms_test")),
    ("model.window", ("attention_window",)),
    ("model.heads", ("swin_heads",)),
    ("model.heads", ("attention_heads",)),
    ("model.auxiliary", ("auxiliary_head",)),
    ("model.auxiliary", ("auxiliary_losses",)),
    ("model.gate.shallowest", ("include_shallowest",)),
    ("model.gate.coefficients", ("num_coefficients",)),
    ("model.pyramid", ("feature_pyramid",)),
    ("model.targets", ("target_masks",)),
    ("model.fuse", ("fused_classes",)),
    ("model.form", ("feature_map",)),
    ("model.anchors_sampled", ("sampled_anchors_per_image",)),
    ("model.boxes_sampled", ("sampled_proposals_per_image",)),
    ("model.box_width", ("box_head_width",)),
    ("model.mask_widths", ("mask_head_widths",)),
)
"""Old keys with the new names of their last part; ``*`` stands for any part. A second new name means that the values of an
old pair are two settings now. A key with two entries was renamed differently in different models: the first entry whose
names are known counts."""


def renamed(key: str, known: Collection[str] | None = None) -> tuple[str, ...]:
    """Return the new name of a key.

    Args:
        key: Dotted key, from the root of an experiment or of one group of its settings.
        known: Keys of the group that the key belongs to; new names that are not among them are left out. None accepts all.

    Returns:
        The new dotted key; two keys if it was split into two settings; empty if it was not renamed.

    >>> renamed("train.budget")
    ('train.max_time',)
    >>> renamed("previous.augment.reshape_p")
    ('cascade.perturb.morphology_p',)
    >>> renamed("copies")
    ('repeats',)
    >>> renamed("model.heads", known=["width", "attention_heads"])
    ('model.attention_heads',)
    >>> renamed("train.steps")
    ()
    """
    *groups, last = key.split(".")
    parents: list[str] = []
    for group in groups:
        parents.append(next(_new_names([*parents, group], from_root=True), (group,))[0])
    candidates = [
        *_new_names([*parents, last], from_root=True),
        *_new_names([*groups, last], from_root=False),
    ]
    new = next((names for names in candidates if known is None or set(names) <= set(known)), ())
    if not new and (parents == groups or (known is not None and last not in known)):
        return ()
    return tuple(".".join([*parents, name]) for name in new or (last,))


def _new_names(parts: list[str], *, from_root: bool) -> Iterator[tuple[str, ...]]:
    """Yield the new names of the last of `parts`, which are a whole old key or, unless `from_root`, its end."""
    for old, new in RENAMED:
        expected = old.split(".")
        if len(expected) == len(parts) or (not from_root and len(expected) > len(parts)):
            ends = expected[-len(parts) :]
            if all(one in ("*", other) for one, other in zip(ends, parts, strict=True)):
                yield new
