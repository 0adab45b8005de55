"""What ``medseg predict`` refuses before any work, and what it need not do again."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medseg.inference.provenance import ModelId, Provenance


def check_settings(settings: Mapping[str, object]) -> None:
    """Refuse as settings of a model what belongs to the call."""
    from medseg.errors import ConfigError

    for name in {"device", "max_memory", "folder"} & set(settings):
        option = "the model's place" if name == "folder" else f"--{name.replace('_', '-')}"
        raise ConfigError(f"--set {name}: found no setting of a model. Give {option} instead.")


def check_options(options: argparse.Namespace) -> None:
    """Refuse options that do not go together."""
    from medseg.errors import ConfigError

    if options.held_out == bool(options.images):
        raise ConfigError("Give either images or --held-out.")
    if options.images and not options.output and not options.estimate:
        raise ConfigError("no place for the label maps. Give it with --output FOLDER.")
    if options.held_out and options.suffix:
        raise ConfigError(
            "found --suffix with --held-out, whose label maps are .nii.gz, as `medseg evaluate` expects them. Leave "
            "it out."
        )
    if options.instances:
        _check_instances(options)


def check_suffix(options: argparse.Namespace, cases: list[Any]) -> None:
    """Refuse pictures of what is no picture."""
    from medseg.errors import ConfigError
    from medseg.io.files import NATURAL_IMAGES, suffix_of

    if options.suffix in NATURAL_IMAGES:
        volume = next(
            (case.images[0] for case in cases if suffix_of(case.images[0]) not in NATURAL_IMAGES), None
        )
        if volume is not None:
            raise ConfigError(
                f"--suffix {options.suffix}: found {volume}, expected pictures, because {options.suffix} holds no volume. "
                "Leave it out."
            )


def _check_instances(options: argparse.Namespace) -> None:
    """Refuse what is said of windows and probabilities, because instances are found in whole slices."""
    from medseg.errors import ConfigError

    others = given_options(options, "estimate", "max-memory", "with", "probabilities")
    if others:
        raise ConfigError(
            f"--instances: found it with {', '.join(others)}, expected none of them, because instances are found in whole "
            "slices by one model. Leave one out."
        )


def given_options(options: argparse.Namespace, *names: str) -> list[str]:
    """Those of the options that were given, as they are written."""
    places = {name: "others" if name == "with" else name.replace("-", "_") for name in names}
    return [f"--{name}" for name, place in places.items() if getattr(options, place)]


def is_there(target: Path, provenance: Provenance, model_id: ModelId, options: argparse.Namespace) -> bool:
    """Whether everything that is asked for of a case is there; what another model made is refused, or made again."""
    from medseg.errors import ConfigError
    from medseg.inference.provenance import probabilities_path
    from medseg.io.files import stem_of
    from medseg.io.instance_files import instance_map_path

    files = [target]
    if options.instances:
        files.append(instance_map_path(target))
    if options.probabilities:
        files.append(probabilities_path(target))
    if not all(file.is_file() for file in files):
        return False
    name = stem_of(target)
    if provenance.is_unfinished(name):
        return False
    wanted = {"instances": options.instances, "probabilities": options.probabilities}
    if not provenance.knows(name) or provenance.is_by(name, model_id, **wanted):
        return True
    if provenance.is_by(name, model_id):  # without all that is wanted
        return False
    if not options.held_out:
        raise ConfigError(
            f"{target}: found a label map of another model or other settings, expected one of this call to go on from. Choose "
            "another --output, or leave --skip-existing out to make it again."
        )
    return False


def files_of(targets: list[Path], options: argparse.Namespace) -> list[Path]:
    """All files that are written for some label maps."""
    from medseg.inference.provenance import probabilities_path
    from medseg.io.instance_files import instance_map_path, instance_table_path

    files = [*targets]
    if options.instances:
        maps = [instance_map_path(target) for target in targets]
        files += [*maps, *map(instance_table_path, maps)]
    if options.probabilities:
        files += map(probabilities_path, targets)
    return files


def check_targets(cases: list[Any], targets: list[Path]) -> None:
    """Refuse before any work: two cases with one name, or an output that is an input."""
    from medseg.errors import ConfigError

    if len(set(targets)) != len(targets):
        twice = next(target for target in targets if targets.count(target) > 1)
        raise ConfigError(
            f"{twice}: two images would be written to this name. Predict them into two folders."
        )
    inputs = {image.resolve() for case in cases for image in case.images}
    clash = next((target for target in targets if target.resolve() in inputs), None)
    if clash is not None:
        raise ConfigError(f"{clash}: the output would replace an input. Choose another --output.")
