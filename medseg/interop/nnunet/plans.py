"""nnU-Net v2's ``plans.json``, read strictly: unknown values that could change a prediction are refused.

Names of classes and functions are only looked up in tables; nothing is imported by name. All lists over axes are in
nnU-Net's order: file axes reversed, then permuted by ``transpose_forward``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import field_validator, model_validator

from medseg.config import Config
from medseg.data.preprocessing.normalize import Normalization
from medseg.data.settings import Method, Millimetres
from medseg.errors import ModelError
from medseg.interop.nnunet.architecture import MAX_STAGES, Architecture, Axes, Foreign, one_of
from medseg.storage.json_files import read_object

READERS = {
    "SimpleITKIO": None,
    "NibabelIO": None,
    "NaturalImage2DIO": None,
    "SimpleITKIOWithReorient": "RAS",
    "NibabelIOWithReorient": "RAS",
}
"""The orientation to which each reader of nnU-Net reorients files; None if it does not."""

NORMALISATIONS: dict[str, Method] = {
    "ZScoreNormalization": "zscore",
    "CTNormalization": "ct",
    "NoNormalization": "none",
    "RescaleTo01Normalization": "rescale",
    "RGBTo01Normalization": "rgb",
}
_RESAMPLING = "resample_data_or_seg_to_shape"
_OLD_KEYS = (
    *("UNet_class_name", "UNet_base_num_features", "unet_max_num_features", "n_conv_per_stage_encoder"),
    *("n_conv_per_stage_decoder", "pool_op_kernel_sizes", "conv_kernel_sizes"),
)


class ForegroundStatistics(Foreign):
    """The foreground statistics of a channel."""

    mean: float
    std: float
    percentile_00_5: float
    percentile_99_5: float


class _Kernel(Config):
    """The arguments of nnU-Net's resampling that medseg reproduces; others are refused."""

    is_seg: Literal[False] = False
    order_z: Literal[0] = 0
    force_separate_z: None = None


class _Cubic(_Kernel):
    order: Literal[3] = 3


class _Linear(_Kernel):
    order: Literal[1] = 1


class Configuration(Foreign):
    """One configuration of the plans, including the keys inherited from its parents."""

    preprocessor_name: Annotated[str, one_of(("DefaultPreprocessor",), "preprocessor")]
    patch_size: Axes
    spacing: tuple[Millimetres, ...]
    normalization_schemes: tuple[Annotated[str, one_of(tuple(NORMALISATIONS), "normalisation")], ...]
    use_mask_for_norm: tuple[bool, ...]
    resampling_fn_data: Annotated[str, one_of((_RESAMPLING,), "resampling")]
    resampling_fn_data_kwargs: _Cubic
    resampling_fn_probabilities: Annotated[str, one_of((_RESAMPLING,), "resampling")]
    resampling_fn_probabilities_kwargs: _Linear
    architecture: Architecture
    previous_stage: str | None = None

    @model_validator(mode="after")
    def _agree(self) -> Configuration:
        dims = self.architecture.arch_kwargs.dims
        if self.previous_stage is not None and dims != 3:
            raise ValueError(
                "found a cascade of 2D networks, expected 3D ones; import the configuration without a previous_stage"
            )
        for key in ("patch_size", "spacing"):
            if len(getattr(self, key)) != dims:
                raise ValueError(
                    f"{key} has {len(getattr(self, key))} entries, expected {dims}, one per axis"
                )
        if len(self.use_mask_for_norm) != len(self.normalization_schemes):
            raise ValueError("use_mask_for_norm and normalization_schemes differ in length")
        return self


class Plans(Foreign):
    """The part of a ``plans.json`` that prediction needs, with one configuration selected."""

    dataset_name: str
    plans_name: str
    image_reader_writer: Annotated[str, one_of(tuple(READERS), "reader")]
    label_manager: Annotated[str, one_of(("LabelManager",), "label manager")] = "LabelManager"
    transpose_forward: tuple[int, int, int]
    configuration: Configuration
    intensities: dict[str, ForegroundStatistics]

    @field_validator("transpose_forward")
    @classmethod
    def _permutation(cls, value: tuple[int, int, int]) -> tuple[int, int, int]:
        if sorted(value) != [0, 1, 2]:
            raise ValueError("expected 0, 1 and 2 in some order")
        return value

    @property
    def orientation(self) -> str | None:
        """The axis codes to which nnU-Net reorients files; None if it does not."""
        return READERS[self.image_reader_writer]

    def normalizations(self) -> tuple[Normalization, ...]:
        """Return one normalisation per channel.

        Returns:
            The normalisations, in the order of the channels.

        Raises:
            ModelError: A CT channel has no statistics.
        """
        chosen = self.configuration
        pairs = zip(chosen.normalization_schemes, chosen.use_mask_for_norm, strict=True)
        return tuple(self._normalization(str(i), scheme, masked) for i, (scheme, masked) in enumerate(pairs))

    def _normalization(self, channel: str, scheme: str, masked: bool) -> Normalization:
        method = NORMALISATIONS[scheme]
        if method == "zscore":
            return Normalization(method="zscore_mask" if masked else "zscore")
        if method != "ct":
            return Normalization(method=method)
        if channel not in self.intensities:
            raise ModelError(
                f"plans.json: foreground_intensity_properties_per_channel: found no channel {channel}, expected its "
                "statistics for CTNormalization. Use the plans with which the model was trained."
            )
        found = self.intensities[channel]
        return Normalization(
            method="ct", mean=found.mean, std=found.std, low=found.percentile_00_5, high=found.percentile_99_5
        )


def read_plans(path: Path, configuration: str) -> Plans:
    """Read one configuration of a ``plans.json``; inherited keys and the older format are resolved.

    Args:
        path: The file.
        configuration: Name of the configuration, such as ``3d_fullres``.

    Returns:
        The plans with this configuration.

    Raises:
        DataError: The file is not a JSON object.
        ConfigError: Values are unknown or do not fit.
        ModelError: The configuration does not exist, or configurations inherit in a circle.
    """
    return parse_plans(read_object(path), configuration, path)


def parse_plans(values: Mapping[str, Any], configuration: str, path: Path) -> Plans:
    """Return one configuration of the contents of a ``plans.json``; see `read_plans`.

    Args:
        values: Contents of the file.
        configuration: Name of the configuration, such as ``3d_fullres``.
        path: File that holds them, for messages.

    Returns:
        The plans with this configuration.

    Raises:
        ConfigError: Values are unknown or do not fit.
        ModelError: The configuration does not exist, or configurations inherit in a circle.
    """
    resolved = _with_inherited_keys(values.get("configurations"), configuration, path)
    intensities = values.get(
        "foreground_intensity_properties_per_channel",
        values.get("foreground_intensity_properties_by_modality", {}),
    )
    chosen = {"configuration": _modern(resolved), "intensities": intensities}
    return Plans.parse({**values, **chosen}, source=str(path))


def _with_inherited_keys(table: Any, name: str, path: Path) -> dict[str, Any]:
    """Return the configuration called `name` with the keys that it inherits from its parents; its own keys take precedence."""
    chain: list[dict[str, Any]] = []
    visited: list[str] = []
    wanted: Any = name
    while wanted is not None:
        if wanted in visited:
            raise ModelError(
                f"{path}: configurations inherit in a circle: {' -> '.join([*visited, wanted])}. Fix inherits_from."
            )
        found = table.get(wanted) if isinstance(table, dict) and isinstance(wanted, str) else None
        if not isinstance(found, dict):
            known = ", ".join(table) if isinstance(table, dict) else "none"
            raise ModelError(
                f"{path}: configurations: found no {wanted!r}, expected one of {known}. Choose one with --configuration."
            )
        visited.append(wanted)
        chain.append(found)
        wanted = found.get("inherits_from")
    return {key: value for part in reversed(chain) for key, value in part.items()}


def _modern(values: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration in the current form; before nnU-Net 2.4 it had no ``architecture``."""
    if "architecture" in values or any(key not in values for key in _OLD_KEYS):
        return values
    patch, blocks = values["patch_size"], values["n_conv_per_stage_encoder"]
    base, most = values["UNet_base_num_features"], values["unet_max_num_features"]
    if not (isinstance(patch, list) and isinstance(blocks, list)):
        return values
    if not (isinstance(base, int) and isinstance(most, int)):
        return values
    dims, plain = len(patch), values["UNet_class_name"] == "PlainConvUNet"
    arguments = {
        "n_stages": len(blocks),
        "features_per_stage": [min(base * 2**i, most) for i in range(min(len(blocks), MAX_STAGES))],
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": values["conv_kernel_sizes"],
        "strides": values["pool_op_kernel_sizes"],
        "n_conv_per_stage" if plain else "n_blocks_per_stage": blocks,
        "n_conv_per_stage_decoder": values["n_conv_per_stage_decoder"],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-5, "affine": True},
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }
    name = f"dynamic_network_architectures.architectures.unet.{values['UNet_class_name']}"
    return {**values, "architecture": {"network_class_name": name, "arch_kwargs": arguments}}
