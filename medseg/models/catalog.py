"""The catalog of models: names, options, and how to build a network.

To add a model, write a torch-free class of options and a function that builds the network, and register the options
under a name::

    # my_models/config.py
    from typing import ClassVar
    from pydantic import PositiveInt
    from medseg.models import ModelOptions, register

    @register("my_net_3d", spatial_dims=3, summary="A small network", reference="Doe 2026")
    class MyNetOptions(ModelOptions):
        builder: ClassVar[str] = "my_models.network:build"
        width: PositiveInt = 16

    # my_models/network.py
    from medseg.models import Model

    class MyNet(Model): ...  # forward(image) returns logits on the image's grid

    def build(options, *, in_channels, num_classes, spatial_dims):
        return MyNet(options, in_channels, num_classes)

In your own package, name the module in ``pyproject.toml``, and medseg finds it wherever both packages are installed::

    [project.entry-points."medseg.models"]
    my_models = "my_models.config"

Inside medseg, add the module to the list of `MODELS`. The name then works in experiments, on the command line and in saved
model folders. A network whose input sizes must be multiples of a number sets ``divisor`` and pads its input; see
`medseg.models.monai.network.MonaiNetwork`.

This module and every ``config`` module are free of torch on purpose, so that ``medseg models``, tab completion and the
check of an experiment file are fast; only `build_model` imports torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from medseg.config import Config
from medseg.errors import ConfigError, ModelError, error_message
from medseg.registry import Registry

if TYPE_CHECKING:
    from medseg.models.base import Model


class ModelOptions(Config):
    """The base class of the options of a model. Values that depend on the data are passed to `build` instead.

    A subclass is a pydantic model: it declares typed fields with defaults, unknown keys are rejected, and its fields appear
    in ``medseg models NAME`` and in experiments.

    Attributes:
        builder: The function that builds the network, as ``module:function``. It is called as
            ``function(options, in_channels=…, num_classes=…, spatial_dims=…)`` and returns a `Model`. It is given as a
            string so that options can be read and checked without importing torch.

    Examples:
        >>> from medseg.models import UNetOptions
        >>> model = UNetOptions(channels=(4, 8)).build(in_channels=1, num_classes=2, spatial_dims=2)
        >>> model.num_classes
        2
    """

    builder: ClassVar[str]

    def axis_errors(self, spatial_dims: int) -> list[str]:
        """Return one sentence per option that does not fit the number of spatial axes; override it for per-axis options."""
        return []

    def build(self, *, in_channels: int, num_classes: int, spatial_dims: int) -> Model:
        """Build the model with fresh weights, or with the pretrained weights that the options select.

        Args:
            in_channels: Channels of the image.
            num_classes: Number of classes, background included.
            spatial_dims: 2 or 3.

        Returns:
            The model.

        Raises:
            ModelError: `builder` does not name an existing function.
        """
        model: Model = self._find_builder()(
            self, in_channels=in_channels, num_classes=num_classes, spatial_dims=spatial_dims
        )
        return model

    def _find_builder(self) -> Callable[..., Model]:
        """Import the function that `builder` names, or raise `ModelError` if it does not exist."""
        name, builder = type(self).__name__, getattr(self, "builder", None)
        expected = "'module:function', such as 'my_package.my_network:build'"
        if not isinstance(builder, str) or not all(builder.partition(":")):
            fix = f"Set `builder: ClassVar[str]` in class {name}"
            raise ModelError(error_message(name, "builder", found=repr(builder), expected=expected, fix=fix))
        module_name, _, function_name = builder.partition(":")
        try:
            module = import_module(module_name)
        except ModuleNotFoundError as error:
            if not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module exists, but a package that it imports does not
            fix = "Correct the builder, or install the package"
            what = f"builder {builder!r}: there is no module {error.name!r}"
            raise ModelError(error_message(name, what, fix=fix)) from None
        function: Callable[..., Model] | None = getattr(module, function_name, None)
        if not callable(function):
            fix = f"Define the function in {module_name}, or correct the builder"
            what = f"builder {builder!r}: module {module_name!r} has no function {function_name!r}"
            raise ModelError(error_message(name, what, fix=fix))
        return function


@dataclass(frozen=True)
class ModelSize:
    """The number of parameters of a model with default options, and the channels and classes it was counted for.

    Attributes:
        parameters: Number of parameters.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
    """

    parameters: int
    in_channels: int
    num_classes: int


@dataclass(frozen=True)
class ModelEntry:
    """One entry of the catalog.

    Attributes:
        name: Registry name, such as ``unet_3d``.
        options: Class of the options; its defaults are the model's.
        dims: Spatial axes of the images.
        summary: One line for ``medseg models``.
        reference: Paper: authors, year and title.
        preset: Values of options in which this name differs from the defaults of the class.
        size: Size of the default model; None where it was not counted.

    Examples:
        >>> from medseg.models import MODELS
        >>> entry = MODELS.get("unet_2d")
        >>> entry.dims, entry.options.__name__, entry.size.parameters
        (2, 'UNetOptions', 1926466)
    """

    name: str
    options: type[ModelOptions]
    dims: int
    summary: str
    reference: str
    preset: Mapping[str, Any] = field(default_factory=dict)
    size: ModelSize | None = None

    @property
    def family(self) -> str:
        """The package of the model: a key of `FAMILIES`, or the name of another package that added the model."""
        parts = self.options.__module__.split(".")
        return parts[2] if parts[:2] == ["medseg", "models"] and len(parts) > 3 else parts[0]


MODELS: Registry[ModelEntry] = Registry(
    "model",
    modules=(
        "medseg.models.unet.config",
        "medseg.models.fcn.config",
        "medseg.models.mask_rcnn.config",
        "medseg.models.maskformer.config",
        "medseg.models.monai.config",
        "medseg.models.segresnet.config",
    ),
    entry_point="medseg.models",
)

FAMILIES = {
    "unet": "U-Nets for volumes and slices; medseg plan proposes unet_3d, unet_2d for single slices, or instance_unet for instances",
    "segresnet": "MONAI's SegResNet for volumes and slices",
    "fcn": "FCN for slices and natural images; start with fcn_resnet_50",
    "mask_rcnn": "Mask R-CNN, which finds instances in slices and natural images; start with mask_rcnn_resnet_50_fpn",
    "maskformer": "MaskFormer and Mask2Former for slices and natural images; start with mask2former_resnet_50",
    "monai": "MONAI's U-Nets, for weights that were trained with it",
}
"""What each package of models is for, in the order in which they are listed."""

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
    """Register a `ModelOptions` subclass under a name; a class decorator that may be stacked.

    Args:
        name: Registry name, such as ``unet_3d``.
        spatial_dims: Spatial axes of the images, 2 or 3.
        summary: One line for ``medseg models``.
        reference: Paper: authors, year and title.
        preset: Values of options in which this name differs from the defaults of the class.
        size: Size of the default model, shown by ``medseg models``.

    Returns:
        The decorator, which returns the class unchanged.

    Raises:
        ConfigError: The name is already taken.

    Examples:
        >>> from typing import ClassVar
        >>> from medseg.models import ModelOptions, parse_options, register
        >>> @register("docs_net_2d", spatial_dims=2, summary="An example", reference="-", preset={"width": 8})
        ... class DocsNetOptions(ModelOptions):
        ...     builder: ClassVar[str] = "my_package.network:build"
        ...     width: int = 4
        >>> parse_options("docs_net_2d").width
        8
    """

    def enter(options: OptionsClass) -> OptionsClass:
        MODELS.add(
            name, ModelEntry(name, options, spatial_dims, summary, reference, dict(preset or {}), size)
        )
        return options

    return enter


def register_2d_and_3d(
    name: str, *, summary: str, reference: str, parameters: tuple[int, int]
) -> Callable[[OptionsClass], OptionsClass]:
    """Register a `ModelOptions` subclass that serves images with two and with three spatial axes; a class decorator.

    Args:
        name: First part of the two registry names, which end in ``_2d`` and ``_3d``.
        summary: One line for ``medseg models``; ``{}`` in it becomes 2D or 3D.
        reference: Paper: authors, year and title.
        parameters: Parameters of the default 2D and 3D models for one channel and two classes.

    Returns:
        The decorator, which returns the class unchanged.

    Raises:
        ConfigError: A name is already taken.

    Examples:
        >>> from typing import ClassVar
        >>> from medseg.models import ModelOptions, list_models
        >>> @register_2d_and_3d("docs_pair", summary="A {} example", reference="-", parameters=(10, 28))
        ... class DocsPairOptions(ModelOptions):
        ...     builder: ClassVar[str] = "my_package.network:build"
        >>> list_models("docs_pair_*")
        ['docs_pair_2d', 'docs_pair_3d']
    """

    def enter(options: OptionsClass) -> OptionsClass:
        for dims, size in zip((2, 3), parameters, strict=True):
            counted = ModelSize(size, in_channels=1, num_classes=2)
            text = summary.format(f"{dims}D")
            register(f"{name}_{dims}d", spatial_dims=dims, summary=text, reference=reference, size=counted)(
                options
            )
        return options

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """Return the sorted names that match a shell-style pattern.

    Args:
        pattern: Pattern such as ``*_3d``.

    Returns:
        The matching names.

    Examples:
        >>> from medseg.models import list_models
        >>> list_models("unet_*")
        ['unet_2d', 'unet_3d']
    """
    return MODELS.names(pattern)


def parse_options(name: str, values: Mapping[str, Any] | None = None, source: str = "model") -> ModelOptions:
    """Return the checked options of a model; does not import torch.

    Args:
        name: A name in `list_models`.
        values: Option names and plain values, as read from YAML.
        source: Prefix of error messages, such as the name of the file.

    Returns:
        An instance of the model's options class.

    Raises:
        ConfigError: The name is unknown, or values do not fit; all errors are listed at once.

    Examples:
        >>> from medseg.models import parse_options
        >>> parse_options("unet_3d", {"channels": [8, 16, 32]}).num_decoder_levels
        2
    """
    entry = MODELS.get(name)
    options = entry.options.parse({**entry.preset, **(values or {})}, source=source)
    raise_for_axes(options, entry.dims, source)
    return options


def raise_for_axes(options: ModelOptions, spatial_dims: int, source: str) -> None:
    """Raise `ConfigError` with every sentence of ``options.axis_errors(spatial_dims)``, if there is one."""
    problems = options.axis_errors(spatial_dims)
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    if problems:
        raise ConfigError(f"{source}: {len(problems)} mistakes:\n" + "\n".join(f"  {p}" for p in problems))


def build_model(name: str, *, in_channels: int, num_classes: int, **options: Any) -> Model:
    """Build a registered model with fresh weights, or with the pretrained weights that the options select.

    Args:
        name: A name in `list_models`.
        in_channels: Channels of the image.
        num_classes: Number of classes, background included.
        **options: Fields of the model's options class; see ``medseg models NAME``.

    Returns:
        The model.

    Raises:
        ConfigError: The name is unknown, or an option does not fit.

    Examples:
        >>> import torch
        >>> from medseg.models import build_model
        >>> model = build_model("unet_2d", in_channels=1, num_classes=3, channels=[4, 8])
        >>> model(torch.zeros(1, 1, 16, 16)).shape
        torch.Size([1, 3, 16, 16])
    """
    for key, value in (("in_channels", in_channels), ("num_classes", num_classes)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            fix = (
                f"Give the number of {'channels' if key == 'in_channels' else 'classes, background included'}"
            )
            raise ConfigError(error_message(name, key, found=repr(value), expected="an integer > 0", fix=fix))
    checked = parse_options(name, options, source=name)
    dims = MODELS.get(name).dims
    return checked.build(in_channels=in_channels, num_classes=num_classes, spatial_dims=dims)
