"""The names of all losses and how each one is built.

This module does not import torch, so an experiment file can be validated quickly; a loss is imported when it is built.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from medseg.errors import ConfigError
from medseg.registry import Registry

if TYPE_CHECKING:
    from torch import Tensor

    from medseg.labels.label_sets import LabelSets

Loss = Callable[["Tensor", "Tensor"], "Tensor"]
"""A function of logits `(n, k, *spatial)` and label values `(n, 1, *spatial)` that returns a scalar."""


@dataclass(frozen=True)
class LossContext:
    """The settings from which a loss is built, besides logits and labels.

    Attributes:
        batch_dice: Whether overlaps are summed over the batch before a ratio such as Dice is computed
            (``train.batch_dice``).
        label_sets: Meaning of the label values: names, regions, and values that stand for several classes. None if
            every value is a class index.
        class_weights: Weight `(k,)` of each output in the cross-entropy, or None.

    Examples:
        >>> LossContext(batch_dice=True)
        LossContext(batch_dice=True, label_sets=None, class_weights=None)
        >>> LossContext().needs_label_sets
        False
    """

    batch_dice: bool = False
    label_sets: LabelSets | None = None
    class_weights: Tensor | None = None

    @property
    def needs_label_sets(self) -> bool:
        """Whether some label values are not class indices, or the outputs are regions."""
        return self.label_sets is not None and not self.label_sets.is_fully_annotated


LossBuilder = Callable[[LossContext], Loss]


@dataclass(frozen=True)
class LossEntry:
    """An entry of the catalog; see `register_loss`.

    Attributes:
        name: Name in ``train.loss``.
        builder: Function that builds the loss, or where it is, as ``module:function``.
        reference: Paper, with authors and year.
        supports_label_sets: Whether the loss handles regions and partially annotated labels.
        supports_class_weights: Whether the loss uses `LossContext.class_weights`.
        supports_soft_labels: Whether the loss handles probabilities `(n, k, *spatial)` in the place of label values.
    """

    name: str
    builder: str | LossBuilder
    reference: str
    supports_label_sets: bool
    supports_class_weights: bool
    supports_soft_labels: bool = False

    def build(self, context: LossContext) -> Loss:
        """Build the loss.

        Args:
            context: The settings of the experiment that concern the loss.

        Returns:
            A function of logits and label values that returns a scalar.
        """
        if not isinstance(self.builder, str):
            return self.builder(context)
        module, _, function = self.builder.partition(":")
        loss: Loss = getattr(import_module(module), function)(context)
        return loss


LOSSES: Registry[LossEntry] = Registry("loss", plural="losses", entry_point="medseg.losses")
"""All losses; installed packages add theirs through the entry point group ``medseg.losses``."""


def register_loss(
    name: str,
    builder: str | LossBuilder,
    *,
    reference: str,
    supports_label_sets: bool = False,
    supports_class_weights: bool = False,
    supports_soft_labels: bool = False,
) -> None:
    """Add a loss to the catalog, so that ``train.loss: NAME`` selects it.

    The builder is called with a `LossContext` when training starts. It returns a function, usually a
    `torch.nn.Module`, of logits `(n, k, *spatial)` and label values `(n, 1, *spatial)` that returns a scalar. Logits are
    not normalised: apply softmax, or sigmoid for regions. Class 0 is the background.

    Call this function in a module that does not import torch, and name that module in the entry point group
    ``medseg.losses`` of your package. In a notebook or script, call it before the experiment is loaded.

    Args:
        name: Name of the loss in ``train.loss``.
        builder: Function that builds the loss, or where it is, as ``"module:function"``. With a string, torch is
            imported only when the loss is used.
        reference: Paper, with authors and year.
        supports_label_sets: Whether the loss handles label values that stand for several classes, and regions. If not,
            experiments with such labels are refused with a message.
        supports_class_weights: Whether the loss uses `LossContext.class_weights`. If not, ``train.class_weights`` is
            refused with a message.
        supports_soft_labels: Whether the loss handles probabilities `(n, k, *spatial)`, a floating-point tensor, in the place of
            label values. If not, cases with label probabilities are refused with a message.

    Raises:
        ConfigError: The name is taken.

    Examples:
        >>> from torch import nn
        >>> def build_smooth_cross_entropy(context):
        ...     criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
        ...     return lambda logits, label: criterion(logits, label[:, 0].long())
        >>> register_loss(
        ...     "smooth_cross_entropy", build_smooth_cross_entropy, reference="Szegedy et al. 2016, arXiv:1512.00567"
        ... )
        >>> "smooth_cross_entropy" in list_losses()
        True
    """
    LOSSES.add(
        name,
        LossEntry(
            name, builder, reference, supports_label_sets, supports_class_weights, supports_soft_labels
        ),
    )


def list_losses(pattern: str = "*") -> list[str]:
    """Return the sorted names of all losses that match a shell-style pattern.

    Args:
        pattern: Pattern such as ``dice*``.

    Returns:
        Sorted names.

    Examples:
        >>> list_losses("dice*")
        ['dice', 'dice_ce', 'dice_focal']
    """
    return LOSSES.names(pattern)


def check_loss_name(name: str) -> str:
    """Return `name` if it is a loss, for use as a pydantic validator.

    Args:
        name: Value of ``train.loss``.

    Returns:
        The name, unchanged.

    Raises:
        ValueError: There is no loss of this name.
    """
    try:
        LOSSES.get(name)
    except ConfigError as error:
        raise ValueError(str(error)) from None
    return name


_DICE = "Milletari et al. 2016, V-Net, arXiv:1606.04797"
_FOCAL = "Lin et al. 2017, arXiv:1708.02002"
_BUILTIN = "medseg.losses.builtin"

register_loss(
    "dice_ce",
    f"{_BUILTIN}:dice_ce",
    reference="Isensee et al. 2021, nnU-Net, Nature Methods 18",
    supports_label_sets=True,
    supports_class_weights=True,
    supports_soft_labels=True,
)
register_loss("dice", f"{_BUILTIN}:dice", reference=_DICE, supports_label_sets=True)
register_loss(
    "cross_entropy",
    f"{_BUILTIN}:cross_entropy",
    reference="torch.nn.CrossEntropyLoss",
    supports_label_sets=True,
    supports_class_weights=True,
)
register_loss(
    "dice_focal", f"{_BUILTIN}:dice_focal", reference=f"{_DICE}; {_FOCAL}", supports_label_sets=True
)
register_loss("focal", f"{_BUILTIN}:focal", reference=_FOCAL, supports_label_sets=True)
register_loss(
    "generalized_dice", f"{_BUILTIN}:generalized_dice", reference="Sudre et al. 2017, arXiv:1707.03237"
)
register_loss("tversky", f"{_BUILTIN}:tversky", reference="Salehi et al. 2017, arXiv:1706.05721")
