"""``medseg.plan``: propose an experiment that fits a dataset."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from medseg.cluster.case_map import CaseExecutor
from medseg.data.datasets.cases import UNDECIDED, Dataset, ReadingOptions
from medseg.data.datasets.layouts import read_dataset
from medseg.data.fingerprint.fingerprint import Fingerprint
from medseg.errors import ConfigError
from medseg.experiment.experiment import Experiment
from medseg.models.catalog import MODELS, parse_options
from medseg.planning.cascade_plans import FIRST, SECOND, commands, explained, second_stage, stage_file
from medseg.planning.commented_yaml import ExplainedValues, plain_values, render_yaml
from medseg.planning.explained_experiment import (
    DatasetSource,
    OtherModel,
    explained_experiment,
    planned_time,
)
from medseg.planning.fingerprint.measure import fingerprint
from medseg.planning.memory_budget import choose_budget
from medseg.planning.nnunet.spacing import THICK_SLICES
from medseg.planning.plan_from_model import (
    Start,
    adopted_proposal,
    fine_tuning_length,
    fitted_to_time,
    with_start,
)
from medseg.planning.plan_options import PlanOptions
from medseg.planning.propose import Kind, Proposal, propose
from medseg.planning.training_length import TrainingLength
from medseg.runtime.formatting import percent, pluralise, single_line
from medseg.runtime.progress import Progress
from medseg.storage.atomic import write_text
from medseg.train.timing.step_estimate import forward_flops
from medseg.volumes.orientation import AXES

_MOST_WARNINGS = 5
_TRAIN_COMMAND = (
    "  medseg train plan.yaml                    # append key=value to change a value: train.steps=2000"
)
FINGERPRINT_NAME, PAGE_NAME = "fingerprint.json", "fingerprint.html"


@dataclass(frozen=True)
class Plan:
    """An experiment proposed for a dataset.

    Attributes:
        experiment: The experiment, ready to train: ``plan.experiment.trainer(run="runs/first")``.
        text: Its YAML, with a comment on each value.
        fingerprint: The measurements of the dataset.
        proposal: The network and the numbers that led to it.
        cascade: The plans of both stages of a cascade, the low resolution first, if a low resolution would see
            more of a volume; else empty.
        time: Without a GPU, how many steps fit into the time, or how long the steps take, on the nominal processor; None if
            it is unknown.
    """

    experiment: Experiment
    text: str
    fingerprint: Fingerprint
    proposal: Proposal
    cascade: tuple[Plan, ...] = ()
    time: str | None = None

    def save(self, path: str | Path, *, overwrite: bool = False) -> None:
        """Write the YAML, and next to it ``fingerprint.json``, ``fingerprint.html`` and the stages of a cascade.

        Args:
            path: The YAML file.
            overwrite: Whether to replace existing files.

        Raises:
            ConfigError: A file exists and `overwrite` is False.
            DataError: The folder cannot be written.
        """
        from medseg.planning.page.plan_page import write_page

        path = Path(path)
        stages = {
            stage_file(path, mark): stage for mark, stage in zip((FIRST, SECOND), self.cascade, strict=False)
        }
        for target in (path, *stages):
            check_target(target, overwrite=overwrite)
        self.fingerprint.save(path.with_name(FINGERPRINT_NAME))
        write_page(self.fingerprint, path.with_name(PAGE_NAME), self.proposal, self.experiment, self.time)
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
                *([f"  kind      {p.kind_reason}"] if p.kind_reason else []),
                *([f"  time      {self.time}"] if self.time else []),
            )
        )


def check_target(path: Path, *, overwrite: bool) -> None:
    """Raise `ConfigError` if a plan exists, which a user may have edited, and `overwrite` is False."""
    if path.exists() and not overwrite:
        raise ConfigError(f"{path}: found an existing file. Choose another --output, or give --overwrite.")


def plan(
    dataset: str | Path,
    options: PlanOptions | None = None,
    *,
    layout: str = "auto",
    reading: ReadingOptions | None = None,
    workers: int | None = 0,
    cluster: str | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Plan:
    """Measure a dataset and propose an experiment for it by nnU-Net's rules (Isensee et al. 2021).

    Args:
        dataset: Folder or table, as for `medseg.read_dataset`.
        options: Preset, dimensions, device, memory and length of the training; None takes the defaults.
        layout: Layout of the dataset.
        reading: What the user decided about files whose headers are wrong; it becomes part of the experiment. None decides
            nothing.
        workers: Largest number of processes that measure cases; 0 measures in this process; None is one per core if the files
            are large.
        cluster: Dask cluster on which cases are measured instead; its workers need the dataset under the same path.
        cache: The ``fingerprint.json`` that `Plan.save` will write. An earlier one is reused if no file of the dataset has
            changed. The plan refers to it, so that a training does not measure the cases again.
        progress: Called after each case with (done, total, case id).

    Returns:
        The plan, which `Plan.save` writes.

    Raises:
        DataError: The dataset cannot be read.
        CasesFailedError: Cases cannot be used; the message lists them.
        ConfigError: The options do not fit the dataset.

    >>> import tempfile
    >>> from medseg.data.datasets.phantom import write_phantoms
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = write_phantoms(folder, cases=2, shape=(16, 16, 12), spacing=(5, 5, 8))
    ...     proposed = plan(folder, PlanOptions(device="cuda"))
    >>> proposed.experiment.model.name
    'unet_3d'
    """
    options = options or PlanOptions()
    stored = None if cache is None else Path(cache).resolve()
    source = DatasetSource(Path(dataset).resolve(), layout, reading or UNDECIDED, stored)
    found = read_dataset(dataset if cluster is None else source.path, layout, reading)
    measured = fingerprint(found, executor=CaseExecutor(workers, cluster), cache=cache, progress=progress)
    preset = options.chosen_preset
    budget = choose_budget(preset, options.memory, options.device)
    length = TrainingLength(budget.on_gpu, options.steps, options.time)
    if options.start is not None:
        return _fine_tuning_plan(measured, options, source, found)
    holds_instances = any(case.instances is not None for case in found.labelled_cases)
    proposal = replace(propose(measured, preset, budget, options.kind, length), instances=holds_instances)
    other = _other_model(options.model, measured, proposal) if options.model else None
    tree = explained_experiment(measured, proposal, source, other)
    single = _plan(_heading(measured, proposal, other), tree, measured, proposal, other)
    if proposal.kind != "3d" or not proposal.low_resolution or other is not None:
        return single
    low = propose(measured, preset, budget, "lowres", length)
    low_tree = explained_experiment(measured, low, source, None)
    return replace(single, cascade=_cascade(single, tree, low, low_tree))


def _fine_tuning_plan(
    measured: Fingerprint, options: PlanOptions, source: DatasetSource, dataset: Dataset
) -> Plan:
    """Return the plan of a training that starts from a trained model."""
    assert options.start is not None
    start = Start.read(options.start, keep_old_labels=options.keep_old_labels)
    budget = choose_budget(options.chosen_preset, options.memory, options.device)
    length = fine_tuning_length(on_gpu=budget.on_gpu, steps=options.steps, time=options.time)
    kind: Kind = "2d" if start.dims == 2 else "3d"
    planned = propose(measured, options.chosen_preset, budget, kind, length)
    adopted = adopted_proposal(measured, planned, start)
    other = _other_model(start.model, measured, adopted, start.options)
    proposal = fitted_to_time(adopted, start, other)
    tree = explained_experiment(measured, proposal, source, other)
    tree = with_start(tree, measured, proposal, start, dataset, requested=bool(options.steps or options.time))
    heading = _heading(measured, proposal, other, start=start)
    return _plan(heading, tree, measured, proposal, other)


def _plan(
    heading: str,
    tree: ExplainedValues,
    measured: Fingerprint,
    proposal: Proposal,
    other: OtherModel | None = None,
) -> Plan:
    experiment = Experiment.parse(plain_values(tree), source="plan")
    text = render_yaml(heading, tree)
    return Plan(experiment, text, measured, proposal, time=planned_time(proposal, other))


def _cascade(
    full: Plan, full_tree: ExplainedValues, low: Proposal, low_tree: ExplainedValues
) -> tuple[Plan, Plan]:
    """Return the plans of the first stage (low resolution) and the second stage (full resolution)."""
    measured = full.fingerprint
    first, second = str(plain_values(low_tree)["name"]), f"{full.experiment.name}{SECOND}"
    order = explained(commands(Path("plan.yaml"), first, second))
    second_tree = second_stage(full_tree, second, first)
    return (
        _plan(_heading(measured, low, None, order), low_tree, measured, low),
        _plan(_heading(measured, full.proposal, None, order), second_tree, measured, full.proposal),
    )


def _other_model(
    name: str, measured: Fingerprint, proposal: Proposal, options: Mapping[str, Any] | None = None
) -> OtherModel:
    """Return a model with its divisor and its arithmetic, for which it is built without allocating memory."""
    import torch

    entry = MODELS.get(name)
    with torch.device("meta"):
        built = parse_options(name, options).build(
            in_channels=len(measured.channel_names), num_classes=measured.num_outputs, spatial_dims=entry.dims
        )
    patch = [-(-n // d) * d for n, d in zip(proposal.patch, built.divisor, strict=True)]
    flops = None if proposal.length.on_gpu else forward_flops(built, len(measured.channel_names), patch)
    return OtherModel(name, built.divisor, None if flops is None else flops / prod(patch))


def _heading(
    f: Fingerprint,
    p: Proposal,
    other: OtherModel | None,
    cascade: Sequence[str] | None = None,
    start: Start | None = None,
) -> str:
    """Return the comment at the top of a plan; `cascade` holds the commands of both stages of a cascade."""
    codes = AXES if start is None else start.orientation(f)
    if codes == AXES:
        axes = "Axes are X, Y, Z in RAS+."
    else:
        axes = "Axes are those of each file." if codes is None else f"Axes have the orientation {codes}."
    lines = [
        f"Plan for {single_line(f.dataset)}: {pluralise(len(f.cases), 'case')}, {pluralise(len(f.channel_names), 'channel')} "
        f"({single_line(', '.join(f.channel_names))}), "
        f"{pluralise(len(f.labels) - 1, 'label')} besides background.",
        f"Memory: {p.budget.source}.",
        *([f"Kind: {p.kind_reason}."] if p.kind_reason else []),
        *([f"Time: {time}."] if (time := planned_time(p, other)) else []),
        *_warnings(f),
        *(_advice(p, other, is_stage=cascade is not None) if start is None else start.in_words(f)),
        "",
        *(cascade or [_TRAIN_COMMAND]),
        "",
        f"You can edit every value. {axes}",
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


def _advice(p: Proposal, other: OtherModel | None, *, is_stage: bool) -> list[str]:
    lines = []
    if is_stage:
        lines.append(
            "One stage of a cascade: a low-resolution network, then a full-resolution network that also receives the "
            "label map of the first."
        )
    elif p.kind == "3d" and p.low_resolution and other is None:
        lines.append(
            f"A patch covers only {percent(p.covered)} of the median volume. plan_lowres.yaml is a coarser network that "
            "sees more; plan_cascade.yaml is this network as the second stage after it."
        )
    if other is None and not is_stage and (flag := _other_kind(p)) is not None:
        lines.append(
            f"To find out whether {flag} or an ensemble of both is better, plan with it, too, train both with --all-folds, and give "
            "both runs to medseg compare."
        )
    if other is not None:
        lines.append("Patch and batch are planned for a U-Net: lower train.batch_size if memory runs out.")
    return lines


def _other_kind(p: Proposal) -> str | None:
    """Return the option for the kind of network that may also suit the dataset; None if there is none."""
    if p.kind_reason:
        return "--dims 3"
    across = p.spacing[p.slice_axis]
    thick = across > THICK_SLICES * max(mm for axis, mm in enumerate(p.spacing) if axis != p.slice_axis)
    return "--dims 2" if p.kind == "3d" and thick else None


def _times(values: Iterable[float]) -> str:
    return " x ".join(f"{value:g}" for value in values)


def command_line(plan_path: Path) -> str:
    """Return the command that trains a saved plan."""
    return f"medseg train {shlex.quote(str(plan_path))}"


def cascade_lines(proposed: Plan, plan_path: Path) -> list[str]:
    """Return the commands that train the cascade of a saved plan, in order; none without a cascade."""
    names = [stage.experiment.name for stage in proposed.cascade]
    return commands(plan_path, *names) if names else []
