"""``medseg.plan``: from a dataset to an experiment that fits it."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from medseg.data.datasets.layouts import Layout, read_dataset
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.models.catalog import MODELS, parse_options
from medseg.planning.cascade_plans import FIRST, SECOND, commands, explained, second_stage, stage_file
from medseg.planning.commented_yaml import ExplainedValues, plain_values, render_yaml
from medseg.planning.explained_experiment import DatasetSource, OtherModel, explained_experiment
from medseg.planning.fingerprint.fingerprint import Fingerprint
from medseg.planning.fingerprint.measure import fingerprint
from medseg.planning.memory_budget import choose_budget
from medseg.planning.nnunet.presets import PresetName, find_preset
from medseg.planning.propose import Kind, Proposal, propose
from medseg.runtime.formatting import percent, pluralise, single_line
from medseg.runtime.progress import Progress
from medseg.storage.atomic import write_text

_MOST_WARNINGS = 5
FINGERPRINT_NAME, PAGE_NAME = "fingerprint.json", "fingerprint.html"


@dataclass(frozen=True)
class Plan:
    """An experiment proposed for a dataset.

    Attributes:
        experiment: ready to train: ``plan.experiment.trainer(run="runs/first")``.
        text: its YAML, with a comment on each value.
        fingerprint: what was measured on the dataset.
        proposal: the network with the numbers behind it.
        cascade: where a low resolution would see more, its plan, and that of this network behind it; else nothing.
    """

    experiment: Experiment
    text: str
    fingerprint: Fingerprint
    proposal: Proposal
    cascade: tuple[Plan, ...] = ()

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the YAML, and beside it ``fingerprint.json``, ``fingerprint.html`` and the stages of a cascade.

        Raises:
            ConfigError: `path` is there and is not to be overwritten. DataError: the folder cannot be written.
        """
        from medseg.planning.plan_page import write_page

        path = Path(path)
        stages = {
            stage_file(path, mark): stage for mark, stage in zip((FIRST, SECOND), self.cascade, strict=False)
        }
        for target in (path, *stages):
            check_target(target, overwrite=overwrite)
        self.fingerprint.save(path.with_name(FINGERPRINT_NAME))
        write_page(self.fingerprint, path.with_name(PAGE_NAME), self.proposal, self.experiment)
        for target, stage in stages.items():
            write_text(target, stage.text)
        write_text(path, self.text)

    def __str__(self) -> str:
        p, e = self.proposal, self.experiment
        return "\n".join(
            (
                f"{e.name}: {e.model.name}, {pluralise(len(self.fingerprint.cases), 'case')}, {len(self.fingerprint.labels)} classes",
                f"  spacing   {_times(p.spacing)} mm, median volume {_times(p.median_shape)}",
                f"  patch     {_times(e.patch.size)} ({percent(p.covered)} of the median), batch {e.train.batch_size}",
                f"  memory    {p.budget.source}",
            )
        )


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise a `ConfigError` if a plan is there already, which a user may have edited."""
    if path.exists() and not overwrite:
        raise ConfigError(
            f"{path}: found a file there already. Choose another --output, or give --overwrite."
        )


def plan(
    dataset: str | Path,
    *,
    preset: PresetName = "unet",
    dims: Literal[2, 3] | None = None,
    lowres: bool = False,
    model: str | None = None,
    memory: str | None = None,
    steps: int | None = None,
    layout: Layout = "auto",
    workers: int | None = 0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Measure a dataset and propose an experiment for it by nnU-Net's rules (Isensee et al. 2021).

    Args:
        dataset: folder or table, as for `medseg.read_dataset`.
        preset: ``unet`` is nnU-Net's default; ``resenc-m``, ``-l`` and ``-xl`` its residual encoders for GPUs of 8,
            24 and 40 GB.
        dims: 2 or 3; None takes 3, or 2 for single slices.
        lowres: the low resolution, for volumes of which a patch at the full one sees little.
        model: a name of `medseg.list_models` to train with its default options instead of the planned U-Net.
        memory: Memory of the GPU, such as ``"8GiB"``; a number needs a unit. None takes the preset's, or what this machine
            has if that is less.
        steps: of the training; None takes 250,000 for a GPU, and as many as 40 minutes hold for a processor.
        layout: of the dataset.
        workers: processes that measure, see `medseg.planning.fingerprint.measure.fingerprint`.
        cache: an earlier ``fingerprint.json``, used again if no file has changed.
        progress: called with (done, total, case id).

    Raises:
        DataError: the dataset cannot be read. ConfigError: options that do not fit each other or the dataset.
    """
    chosen = find_preset(preset)
    kind = _kind(dims, lowres, model)
    if steps is not None and steps < 1:
        raise ConfigError(f"steps: found {steps}, expected at least 1. Correct it.")
    if model is not None and preset != "unet":
        raise ConfigError("a preset plans its own model. Give either --model or --preset.")
    source = DatasetSource(Path(dataset).resolve(), layout)
    measured = fingerprint(read_dataset(dataset, layout), workers=workers, cache=cache, progress=progress)
    proposal = propose(measured, chosen, choose_budget(chosen, memory), kind)
    other = _other_model(model, measured, proposal) if model else None
    tree = explained_experiment(measured, proposal, source, steps, other)
    made = _made(_heading(measured, proposal, other), tree, measured, proposal)
    if proposal.kind != "3d" or not proposal.low_resolution or other is not None:
        return made
    low = propose(measured, chosen, proposal.budget, "lowres")
    return replace(
        made, cascade=_cascade(made, tree, low, explained_experiment(measured, low, source, steps, None))
    )


def _made(heading: str, tree: ExplainedValues, measured: Fingerprint, proposal: Proposal) -> Plan:
    return Plan(
        Experiment.parse(plain_values(tree), source="plan"), render_yaml(heading, tree), measured, proposal
    )


def _cascade(
    full: Plan, full_tree: ExplainedValues, low: Proposal, low_tree: ExplainedValues
) -> tuple[Plan, Plan]:
    """The low resolution's plan, and that of the full one behind it."""
    measured, name = full.fingerprint, full.experiment.name
    first, second = str(plain_values(low_tree)["name"]), f"{name}{SECOND}"
    order = explained(commands(Path("plan.yaml"), first, second))
    return (
        _made(_heading(measured, low, None, order), low_tree, measured, low),
        _made(
            _heading(measured, full.proposal, None, order),
            second_stage(full_tree, second, first),
            measured,
            full.proposal,
        ),
    )


def _kind(dims: int | None, lowres: bool, model: str | None) -> Kind | None:
    if dims not in (None, 2, 3):
        raise ConfigError(f"dims: found {dims}, expected 2 or 3. Correct it.")
    if model is not None:
        needed = MODELS.get(model).dims
        if dims not in (None, needed):
            raise ConfigError(
                f"dims: found {dims}, expected {needed} because {model} has {needed}. Leave it out."
            )
        dims = needed
    if lowres and dims == 2:
        raise ConfigError("lowres: a low resolution is for 3-D networks. Give either --lowres or --dims 2.")
    if lowres:
        return "lowres"
    return None if dims is None else "2d" if dims == 2 else "3d"


def _other_model(name: str, measured: Fingerprint, proposal: Proposal) -> OtherModel:
    """Its divisor, from the model itself built without memory."""
    import torch

    entry = MODELS.get(name)
    with torch.device("meta"):
        built = parse_options(name).build(
            in_channels=len(measured.channel_names), num_classes=measured.num_outputs, spatial_dims=entry.dims
        )
    return OtherModel(name, built.divisor)


def _heading(
    f: Fingerprint, p: Proposal, other: OtherModel | None, cascade: Sequence[str] | None = None
) -> str:
    """What stands above a plan; `cascade` holds the commands of both stages where it is one of them."""
    lines = [
        f"Plan for {single_line(f.dataset)}: {pluralise(len(f.cases), 'case')}, {pluralise(len(f.channel_names), 'channel')} "
        f"({single_line(', '.join(f.channel_names))}), "
        f"{pluralise(len(f.labels) - 1, 'label')} besides background.",
        f"Memory: {p.budget.source}.",
        *_warnings(f),
        *_advice(p, other, alone=cascade is None),
        "",
        *(
            cascade
            or [
                "  medseg train plan.yaml                    # behind it, any value can be changed: train.steps=2000"
            ]
        ),
        "",
        "Every value may be edited. Axes are X, Y, Z in RAS+.",
    ]
    return "\n".join(lines)


def _warnings(f: Fingerprint) -> list[str]:
    severe = [single_line(finding.text) for finding in f.findings if finding.severe]
    more = (
        [f"{len(severe) - _MOST_WARNINGS} more findings are in {PAGE_NAME}."]
        if len(severe) > _MOST_WARNINGS
        else []
    )
    return [f"Note: {text}" for text in severe[:_MOST_WARNINGS]] + more


def _advice(p: Proposal, other: OtherModel | None, *, alone: bool) -> list[str]:
    lines = []
    if not alone:
        lines.append(
            "A stage of a cascade: a network at a low resolution, and one at the full one that sees its label map."
        )
    elif p.kind == "3d" and p.low_resolution and other is None:
        lines.append(
            f"A patch holds only {percent(p.covered)} of the median volume. plan_lowres.yaml is a coarser network that sees "
            "more, and plan_cascade.yaml this one behind it."
        )
    if other is not None:
        lines.append("Patch and batch are those of a U-Net: lower train.batch_size if memory runs out.")
    return lines


def _times(values: Any) -> str:
    return " x ".join(f"{value:g}" for value in values)


def command_line(plan_path: Path) -> str:
    """The command that trains a saved plan."""
    return f"medseg train {shlex.quote(str(plan_path))}"


def cascade_lines(made: Plan, plan_path: Path) -> list[str]:
    """The commands that train the cascade of a saved plan, in order; none where there is no cascade."""
    names = [stage.experiment.name for stage in made.cascade]
    return commands(plan_path, *names) if names else []
