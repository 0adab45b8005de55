"""The names of all models, what they can be told, and how one is built.

This module and every ``*_config`` module are free of torch on purpose: ``medseg models``, tab completion and the
checking of an experiment file answer at once, and only `build_model` pays for the import.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from medseg.config import Config
from medseg.errors import ConfigError, error_message
from medseg.registry import Registry

if TYPE_CHECKING:
    from medseg.models.base import Model


class ModelOptions(Config):
    """The options of one model that a user may choose. What depends on the data is passed to `build`.

    Attributes:
        builder: where the network is built, as ``module:function``. The function is called with the options and the
            arguments of `build`. It is named by a string so that options can be read and checked without torch.
    """

    builder: ClassVar[str]

    def axis_errors(self, spatial_dims: int) -> list[str]:
        """Return one sentence per option that does not fit the number of spatial axes."""
        return []

    def build(self, *, in_channels: int, num_classes: int, spatial_dims: int) -> Model:
        """Build the model with fresh weights, or with the pretrained weights that the options name.

        Args:
            in_channels: channels of the image.
            num_classes: classes, background included.
            spatial_dims: 2 or 3.
        """
        module, _, function = self.builder.partition(":")
        model: Model = getattr(import_module(module), function)(
            self, in_channels=in_channels, num_classes=num_classes, spatial_dims=spatial_dims
        )
        return model


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a model with the defaults of its name, and the channels and classes they were counted for."""

    parameters: int
    in_channels: int
    num_classes: int


@dataclass(frozen=True)
class ModelEntry:
    """One line of the catalog.

    Args:
        name: the registry name, such as ``unet_3d``.
        options: class of the options; its defaults are the model's.
        dims: spatial axes of the images that the model takes.
        summary: one line for ``medseg models``.
        reference: paper, authors and year.
        preset: option values of this name that differ from the class's defaults.
        size: of the default model, None where it was not counted.
    """

    name: str
    options: type[ModelOptions]
    dims: int
    summary: str
    reference: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    size: ModelSize | None = None


MODELS: Registry[ModelEntry] = Registry(
    "model",
    modules=(
        "medseg.models.unet.config",
        "medseg.models.fcn.config",
        "medseg.models.mask_rcnn.config",
        "medseg.models.maskformer.config",
        "medseg.models.monai.config",
    ),
    entry_point="medseg.models",
)

OptionsClass = TypeVar("OptionsClass", bound=type[ModelOptions])


def register(
    name: str,
    *,
    spatial_dims: int,
    summary: str,
    reference: str,
    preset: Mapping[str, Any] | None = None,
    size: ModelSize | None = None,
) -> Callable[[OptionsClass], OptionsClass]:
    """Class decorator that enters a `ModelOptions` class in the catalog under `name`; may be stacked.

    Raises:
        ConfigError: the name is taken.
    """

    def enter(options: OptionsClass) -> OptionsClass:
        MODELS.add(
            name, ModelEntry(name, options, spatial_dims, summary, reference, dict(preset or {}), size)
        )
        return options

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """Sorted names that match a shell-style pattern, such as ``*_3d``."""
    return MODELS.names(pattern)


def parse_options(name: str, values: Mapping[str, Any] | None = None, source: str = "model") -> ModelOptions:
    """Check plain values against the options of the model called `name`; does not import torch.

    Args:
        name: a name in `list_models`.
        values: option names and plain values, as read from YAML.
        source: shown in front of messages, such as the file's name.

    Raises:
        ConfigError: the name is unknown, or values do not fit; all mistakes are listed at once.
    """
    entry = MODELS.get(name)
    options = entry.options.parse({**entry.preset, **(values or {})}, source=source)
    raise_for_axes(options, entry.dims, source)
    return options


def raise_for_axes(options: ModelOptions, spatial_dims: int, source: str) -> None:
    """Raise `ConfigError` with every sentence of ``options.problems(spatial_dims)``."""
    problems = options.axis_errors(spatial_dims)
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    if problems:
        raise ConfigError(f"{source}: {len(problems)} mistakes:\n" + "\n".join(f"  {p}" for p in problems))


def build_model(name: str, *, in_channels: int, num_classes: int, **options: Any) -> Model:
    """Build a registered model with fresh weights.

    Args:
        name: a name in `list_models`.
        in_channels: channels of the image.
        num_classes: classes with the background counted.
        **options: fields of the model's options class; see ``medseg models NAME``.

    Raises:
        ConfigError: the name is unknown or an option does not fit.
    """
    for key, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            fix = (
                f"Give the number of {'channels' if key == 'in_channels' else 'classes, background counted'}"
            )
            raise ConfigError(error_message(name, key, found=repr(value), expected="an integer > 0", fix=fix))
    checked = parse_options(name, options, source=name)
    dims = MODELS.get(name).dims
    return checked.build(in_channels=in_channels, num_classes=num_classes, spatial_dims=dims)
