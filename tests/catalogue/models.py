"""Entries 92 to 98: checkpoints, model folders and models of other programs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import torch

from medseg.experiment.experiment import Experiment
from medseg.storage.manifest import write_manifest
from tests.catalogue.bench import CONFIG, Bench
from tests.catalogue.promise import Answer, Broken, recipe
from tests.helpers.nnunet_models import dataset_of, plans_3d, write_trained


def unfinished(bench: Bench) -> Path:
    """Return a run of six steps that was left after the fourth, with the checkpoints of steps 2 and 4."""
    config = bench.folder / "toy.yaml"
    config.write_text(
        CONFIG.replace("DATA", str(bench.shared.dataset)).replace("steps: 2", "steps: 6, save_every: 2")
    )
    run = bench.folder / "run"
    for report in Experiment.load(config).trainer(run):
        if report.step == 4:
            break
    return run


@recipe(92)
def cut_checkpoints(bench: Bench) -> list[Answer]:
    run = unfinished(bench)
    answers = []
    cuts = {"weights.safetensors": (0, 10, "half"), "state.pt": (1, "half", -1)}
    for name, cut in ((name, cut) for name, found in cuts.items() for cut in found):
        copy = bench.folder / f"{name}_{cut}"
        shutil.copytree(run, copy)
        path = max((copy / "last").glob("step-*")) / name
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2 if cut == "half" else int(cut)])
        answer = bench.run("train", "--resume", copy)
        if answer.code or not (copy / "model").is_dir():
            raise Broken(f"{name} cut at {cut}: not resumed:\n{answer.text}")
        answers.append(answer)
    return answers


def model(bench: Bench) -> Path:
    copy = bench.folder / "model"
    shutil.copytree(bench.shared.model, copy)
    return copy


def predicted(bench: Bench, folder: Path, file: str = "") -> list[Answer]:
    out = bench.folder / "out"
    answer = bench.run("predict", folder, bench.shared.good_image, "-o", out, file=file)
    if answer.code != 1 or out.exists():
        raise Broken(f"exit code {answer.code}")
    return [answer]


@recipe(93)
def flipped_weight(bench: Bench) -> list[Answer]:
    folder = model(bench)
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    return [*predicted(bench, folder), bench.run("check", folder)]


@recipe(94)
def other_architecture(bench: Bench) -> list[Answer]:
    folder = model(bench)
    path = folder / "config.yaml"
    text = path.read_text()
    text = text.replace("- 8", "- 16", 1).replace("[4, 8]", "[4, 16]", 1)
    path.write_text(text)
    write_manifest(folder)
    return predicted(bench, folder, "model.safetensors")


@recipe(95)
def newer_format(bench: Bench) -> list[Answer]:
    folder = model(bench)
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("format: 1", "format: 2", 1))
    write_manifest(folder)
    return predicted(bench, folder, "config.yaml")


class Payload:
    """An object that runs a command when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {self.target}",)


@recipe(96)
def pickle_with_code(bench: Bench) -> Answer:
    path, target = bench.folder / "state.pt", bench.folder / "ran"
    torch.save({"weight": Payload(target)}, path)
    config, labels = bench.folder / "c.yaml", bench.folder / "labels.tsv"
    config.write_text(
        "name: a\nnetwork: {spatial_dims: 3, in_channels: 1, out_channels: 2, channels: [4, 8], strides: [2]}\nwindow: [8, 8, 8]\nchannel_names: [CT]\npreprocessing: {channels: [{method: zscore}]}\n"
    )
    labels.write_text("value\tname\n0\tbackground\n1\tliver\n")
    words = ("--network", "unet", "--config", config, "--labels", labels, "-o", bench.folder / "model")
    answer = bench.run("import", "monai", path, *words, file=path)
    if target.exists():
        raise Broken("the code ran")
    return answer


@recipe(97)
def no_manifest(bench: Bench) -> list[Answer]:
    folder = model(bench)
    (folder / "manifest.json").unlink()
    return predicted(bench, folder)


@recipe(97, 1)
def unlisted_file(bench: Bench) -> list[Answer]:
    folder = model(bench)
    (folder / "extra.txt").write_text("x")
    return [*predicted(bench, folder), bench.run("check", folder)]


@recipe(98)
def unknown_network(bench: Bench) -> Answer:
    trained = write_trained(bench.folder, "3d_fullres", plans_3d([2.0, 1.0, 1.0]), dataset_of())
    path = trained / "plans.json"
    plans = json.loads(path.read_text())
    plans["configurations"]["3d_fullres"]["architecture"]["network_class_name"] = "my_package.MyNet"
    path.write_text(json.dumps(plans))
    return bench.run("import", "nnunet", trained, "-o", bench.folder / "model")
