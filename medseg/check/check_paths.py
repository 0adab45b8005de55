"""Checks of whatever the user names: datasets, images, model folders and runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from medseg.check.cases.check_case import CheckedCase
from medseg.check.check_report import Report, merged
from medseg.check.datasets.across_cases import duplicates
from medseg.check.datasets.check_dataset import CheckOptions, check_cases, check_dataset, check_listed
from medseg.check.datasets.dataset_files import list_dataset
from medseg.check.finding import Finding, message_parts
from medseg.data.datasets.cases import Case
from medseg.data.datasets.image_inputs import read_images
from medseg.data.datasets.layouts import checked_layout, is_dataset
from medseg.errors import DataError, MedsegError, no_such_path
from medseg.storage.manifest import NAME as MANIFEST
from medseg.storage.manifest import check_manifest

_DESCRIPTIONS = ("dataset.json", "cases.tsv", "cases.csv")


def check_paths(paths: Sequence[str | Path], options: CheckOptions | None = None) -> Report:
    """Check datasets, image files, model folders and runs.

    Args:
        paths: What to check. Image files are compared with each other. With a model folder or a run and images without
            errors, the model is tested on the images.
        options: How datasets are checked; None for the defaults.

    Returns:
        All findings.

    Raises:
        DataError: There is no such path, the layout is unknown, or there is nothing that can be checked.
    """
    options = options or CheckOptions()
    checked_layout(options.layout)
    if options.splits is not None and not options.splits.is_file():
        raise DataError(no_such_path(options.splits, "file", expected="splits as JSON"))
    reports: list[Report] = []
    images: list[Path] = []
    models: list[Path] = []
    for path in map(Path, paths):
        if not path.exists() and not path.is_symlink():
            raise DataError(no_such_path(path))
        if is_run(path):
            reports.append(_check_run(path, options))
            if (path / "model").is_dir():
                reports.append(_check_model(path / "model"))
                models.append(path / "model")
        elif is_model_folder(path):
            reports.append(_check_model(path))
            models.append(path)
        elif _is_described(path):
            found = check_dataset(path, options)
            reports.append(Report(str(path), found.findings, found.cases, datasets=(found,)))
        else:
            images.append(path)
    if images:
        reports.append(_check_images(images, options))
        damaged = any(finding.code == "MODEL_DAMAGED" for report in reports for finding in report.findings)
        readable = not reports[-1].counts["error"]
        if readable and not damaged:
            reports += [_tested(model, images, options) for model in models]
    return merged(reports)


def is_model_folder(path: Path) -> bool:
    """Return whether a path is a model folder, also one that lost some of its files."""
    return path.is_dir() and (path / MANIFEST).is_file() and (path / "config.yaml").is_file()


def is_run(path: Path) -> bool:
    """Return whether a path is a run or a cross-validation."""
    return path.is_dir() and not (path / MANIFEST).is_file() and (path / "config.yaml").is_file()


def _is_described(path: Path) -> bool:
    described = path.name in _DESCRIPTIONS or path.suffix.lower() in (".tsv", ".csv")
    return described or any((path / name).is_file() for name in _DESCRIPTIONS) or is_dataset(path)


def _check_images(paths: Sequence[Path], options: CheckOptions) -> Report:
    """Check image files that belong to no dataset; label maps are images here."""
    cases = [case for path in paths for case in _cases_of(path)]
    numbered = [
        replace(case, id=f"image_{i}") for i, case in enumerate(cases)
    ]  # names may repeat in other folders
    if options.reading is not None:
        numbered = [replace(case, reading=options.reading) for case in numbered]
    root = paths[0].parent if len({path.parent for path in paths}) == 1 else Path()
    checked = check_cases(numbered, None, (), root, options)
    named = tuple(_renamed(one, case.id) for one, case in zip(checked, cases, strict=True))
    found = [finding for case in named for finding in case.findings]
    found += duplicates(named)
    title = str(paths[0]) if len(paths) == 1 else f"{len(paths)} paths"
    return Report(title, tuple(found), named)


def _tested(model: Path, images: Sequence[Path], options: CheckOptions) -> Report:
    """Return the report of a model's self-test."""
    from medseg.check.self_test import self_test

    findings, passed = self_test(model, images, progress=options.progress)
    return Report(str(model), tuple(findings), passed=tuple(passed))


def _cases_of(path: Path) -> list[Case]:
    if path.is_dir():
        return read_images(path)
    return [Case("image", (path,))]


def _renamed(case: CheckedCase, name: str) -> CheckedCase:
    label = name if name != "image" else Path(case.image_file).name
    findings = tuple(replace(finding, case=label) for finding in case.findings)
    return replace(case, id=label, subject=label, findings=findings)


def _model_findings(path: Path) -> list[Finding]:
    try:
        check_manifest(path)
    except MedsegError as error:
        parts = message_parts(str(error), path)
        file, _, found = parts.found.partition(": ") if not parts.field else (parts.field, "", parts.found)
        return [
            Finding(
                "MODEL_DAMAGED",
                str(path),
                file or "files",
                found or parts.found,
                parts.expected,
                parts.remedy,
            )
        ]
    return []


def _check_model(path: Path) -> Report:
    """Check the files of a model folder, and what the model computes for its reference image."""
    findings = _model_findings(path)
    if findings:
        return Report(str(path), tuple(findings))
    from medseg.check.check_reference import check_reference

    findings, passed = check_reference(path)
    return Report(str(path), tuple(findings), passed=tuple(passed))


def _check_run(path: Path, options: CheckOptions) -> Report:
    """Check the data of a run with its own labels, repairs and splits."""
    from medseg.experiment.resolve_data import labels_of
    from medseg.experiment.run_folder import RunFolder

    run = RunFolder(path)
    findings: list[Finding] = []
    try:
        experiment = run.read_experiment()
        if experiment.data.path is None:  # phantoms have no faults
            return Report(str(path), tuple(findings))
        listed = list_dataset(Path(experiment.data.path), experiment.data.layout, experiment.data.reading)
        findings += listed.findings
        if listed.dataset is None:
            return Report(str(path), tuple(findings))
        dataset = replace(listed.dataset, labels=labels_of(experiment, listed.dataset))
    except MedsegError as error:
        parts = message_parts(str(error), path)
        where = parts.field or "config.yaml"
        findings.append(
            Finding("RUN_UNREADABLE", str(path), where, parts.found, parts.expected, parts.remedy)
        )
        return Report(str(path), tuple(findings))
    splits = options.splits or (run.splits if run.splits.is_file() else None)
    used = replace(dataset, cases=dataset.labelled_cases)
    found = check_listed(used, replace(options, splits=splits), listed.description, findings)
    return Report(str(path), found.findings, found.cases, datasets=(found,))
