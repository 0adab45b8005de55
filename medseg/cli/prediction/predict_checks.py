"""Checks of the arguments of ``medseg predict``: images, settings, and options that exclude each other."""

from __future__ import annotations

import argparse
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_SETTING = re.compile(r"[A-Za-z_][\w.]*=")

COPIES = ("--split-labels", "--layers", "--label-table")
"""Options that write copies of label maps in other forms."""


def given_options(options: argparse.Namespace) -> frozenset[str]:
    """Return the options that were given, as they are typed: ``{"--suffix", "--held-out"}``."""
    others = {"model", "images", "command", "debug"}
    names = (name for name, value in vars(options).items() if value and name not in others)
    return frozenset(f"--{name.replace('_', '-')}" for name in names)


def images_and_settings(arguments: Sequence[str]) -> tuple[list[Path], dict[str, Any]]:
    """Separate image paths from ``key=value`` settings.

    Args:
        arguments: Paths and settings, in any order. An existing file is a path whatever its name.

    Returns:
        The paths, and the settings by key.

    Raises:
        ConfigError: A setting is not YAML, or is an option instead.
    """
    from medseg.config import apply_overrides
    from medseg.errors import ConfigError

    settings = [word for word in arguments if _SETTING.match(word) and not Path(word).exists()]
    values = apply_overrides({}, settings)
    for name in {"device", "max_memory", "max_device_memory"} & set(values):
        option = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{name}: found an option among the settings of the model. Give {option} instead.")
    return [Path(word) for word in arguments if word not in settings], values


def check_options(given: Collection[str], images: bool) -> None:
    """Raise `ConfigError` if options exclude each other, or if images or the output folder are missing.

    Args:
        given: The options that were given, see `given_options`.
        images: Whether images were given.
    """
    from medseg.errors import ConfigError

    if ("--held-out" in given) == images:
        found = "images and --held-out" if images else "neither images nor --held-out"
        raise ConfigError(f"images: found {found}, expected one of them. Give either images or --held-out.")
    if images and not {"--output", "--estimate"} & set(given):
        raise ConfigError(
            "--output: found no folder for the label maps, expected one. Give it with --output FOLDER."
        )
    if {"--held-out", "--suffix"} <= set(given):
        raise ConfigError(
            "--suffix: found it with --held-out, whose label maps are .nii.gz, as `medseg evaluate` expects. Remove "
            "--suffix."
        )
    if {"--estimate", "--cluster"} <= set(given):
        raise ConfigError(
            "--cluster: found it with --estimate, which times this machine. Remove one of them."
        )
    if {"--estimate", "--report"} <= set(given):
        raise ConfigError("--report: found it with --estimate, which predicts nothing. Remove one of them.")
    if "--instances" in given:
        reason = "one model finds instances and writes their maps. Remove one of the options"
        others = (
            *("--estimate", "--ensemble-with"),
            *("--probabilities", "--uncertainty", *COPIES),
        )
        _refuse("--instances", given, others, reason)


def check_out_of_fold(run: Path, given: Collection[str], settings: Mapping[str, object]) -> None:
    """Raise `ConfigError` for options that cannot be used with the held-out cases of a cross-validation.

    Args:
        run: Folder of the cross-validation.
        given: The options that were given, see `given_options`.
        settings: The settings that were given.
    """
    changed = [f"{name}=" for name in settings]
    others = (
        *(
            "--output",
            "--estimate",
            "--report",
            "--ensemble-with",
            "--probabilities",
            "--uncertainty",
            *COPIES,
            *("--series", "--uneven"),
            "--orientation-from",
            "--files-root",
        ),
        *("--part", *changed),
    )
    reason = f"each fold predicts with its own settings. Predict with one fold: {run / 'fold_0'}"
    _refuse(f"{run}: --held-out", {*given, *changed}, others, reason)


def check_sharing(part: str | None, cluster: str | None) -> None:
    """Raise `ConfigError` if the part or the cluster is described wrongly, before models are loaded.

    Args:
        part: The option ``--part``.
        cluster: The option ``--cluster``.
    """
    from medseg.cluster.dask_cluster import check_cluster
    from medseg.cluster.parts import Part

    if part is not None:
        Part.parse(part)
    if cluster is not None:
        check_cluster(cluster)


def _refuse(what: str, given: Collection[str], others: Sequence[str], reason: str) -> None:
    from medseg.errors import ConfigError

    found = [option for option in others if option in given]
    if found:
        raise ConfigError(
            f"{what}: found it with {', '.join(found)}, expected none of them, because {reason}."
        )
