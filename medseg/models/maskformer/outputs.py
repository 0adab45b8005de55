"""Semantic, instance and panoptic maps from the queries of MaskFormer and Mask2Former (Cheng et al. 2021).

All functions take class logits (q k+1) of one image, whose last class is "no object", and mask logits (q x y) on the
image's grid.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from medseg.models.detections import Detections, boxes_of

FLOOR = 1e-6
"""Minimum score of a class, so that its logarithm is finite."""


@dataclass(frozen=True)
class QueryRegion:
    """One region of a panoptic map.

    Attributes:
        number: Value in the map, from 1.
        class_index: Class of the region.
        score: Score in 0…1; that of the first query if several are fused.
        fused: Whether all regions of the class are merged into one.
    """

    number: int
    class_index: int
    score: float
    fused: bool


@dataclass(frozen=True)
class Panoptic:
    """A panoptic map: regions without overlap.

    Attributes:
        regions: The regions, in the order of their numbers.
        numbers: Number of the region of each voxel, (x y) int32; 0 where there is no region.

    Examples:
        >>> import torch
        >>> from medseg.models import Panoptic
        >>> Panoptic(regions=(), numbers=torch.zeros(4, 4, dtype=torch.int32)).regions
        ()
    """

    regions: tuple[QueryRegion, ...]
    numbers: Tensor


def semantic_scores(class_logits: Tensor, mask_logits: Tensor) -> Tensor:
    """Return a score for each class and voxel of one image, (k x y), from the queries' logits (q k+1) and (q x y).

    The score is the sum over all queries of class probability times mask probability. The last class logit stands for
    "no object" and gets no score.
    """
    probabilities = class_logits.softmax(dim=-1)[:, :-1]
    return torch.einsum("qk,qxy->kxy", probabilities, mask_logits.sigmoid())


def query_instances(
    class_logits: Tensor, mask_logits: Tensor, *, threshold: float, mask_threshold: float
) -> Detections:
    """Return the instances, best first.

    The candidates are the most probable pairs of query and class, as many as there are queries. Their score is the
    class probability times the mean mask probability inside the mask. Candidates are kept if their score reaches
    `threshold`, their mask is not empty, and their class is not 0, the background.
    """
    queries, classes = len(class_logits), class_logits.shape[1] - 1
    probabilities, pairs = class_logits.softmax(dim=-1)[:, :-1].flatten().topk(queries)
    found, query = pairs % classes, pairs // classes
    inside = mask_logits.sigmoid()
    masks = inside > mask_threshold
    area = masks.sum(dim=(1, 2))
    quality = (inside * masks).sum(dim=(1, 2)) / (area + 1e-6)
    scores = probabilities * quality[query]
    keep = torch.nonzero((scores >= threshold) & (area[query] > 0) & (found > 0))[:, 0]
    keep = keep[scores[keep].argsort(descending=True, stable=True)]
    chosen = masks[query[keep]]
    return Detections(
        scores[keep], found[keep], boxes_of(chosen) if len(keep) else scores.new_zeros(0, 4), chosen
    )


def panoptic(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    threshold: float,
    mask_threshold: float,
    overlap_threshold: float,
    fuse: frozenset[int],
) -> Panoptic:
    """Assign each voxel to at most one query, by score times mask probability.

    Args:
        class_logits: Class logits (q k+1).
        mask_logits: Mask logits (q x y).
        threshold: Probability that the best class of a query must exceed; queries with the class "no object" are
            ignored.
        mask_threshold: Minimum score times mask probability of the voxels that form a query's own area.
        overlap_threshold: Fraction of a query's own area that its assigned voxels must exceed.
        fuse: Classes whose regions all get the same number.

    Returns:
        The panoptic map.
    """
    scores, found = class_logits.softmax(dim=-1).max(dim=-1)
    kept = torch.nonzero((found != class_logits.shape[1] - 1) & (scores > threshold))[:, 0]
    numbers = torch.zeros(mask_logits.shape[1:], dtype=torch.int32, device=mask_logits.device)
    if len(kept) == 0:
        return Panoptic((), numbers)
    weighed = mask_logits[kept].sigmoid() * scores[kept][:, None, None]
    owner = weighed.argmax(dim=0)
    regions: list[QueryRegion] = []
    fused: dict[int, int] = {}
    for i, query in enumerate(kept.tolist()):
        given = owner == i
        area, own = given.sum(), (weighed[i] >= mask_threshold).sum()
        if area == 0 or own == 0 or float(area / own) <= overlap_threshold:
            continue
        k = int(found[query])
        number = fused.get(k, len(regions) + 1)
        numbers[given] = number
        if number > len(regions):
            regions.append(QueryRegion(number, k, float(scores[query]), k in fuse))
        if k in fuse:
            fused[k] = number
    return Panoptic(tuple(regions), numbers)
