"""A training that is stopped at any point and resumed ends with the same weights as one that was not stopped."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from medseg.cli.main import main
from medseg.data.datasets.splits import read_splits
from medseg.errors import ConfigError, MedsegError, ResourceError
from medseg.experiment.experiment import Experiment
from medseg.io.files import read_labels, write
from medseg.runtime.stop_signals import SIGNALS, Interrupted
from medseg.storage.temporary_names import temporary_folder
from medseg.train.checkpoint import load_checkpoint
from medseg.train.reports.reporting import Meter, read_metrics
from medseg.train.trainer import Trainer
from tests.helpers.children import start_program
from tests.helpers.runs import one_thread, toy_experiment, write_toy_data

pytestmark = pytest.mark.slow

# A process is forked for each training, which ends itself in the middle of a step.
CHILDREN = """
import os, signal, sys, torch
from medseg.experiment.experiment import Experiment
from medseg.train.trainer import Trainer
torch.set_num_threads(1)
plain, children = Trainer._train_step, []
for config, run, killed_after in zip(*[iter(sys.argv[3:])] * 3):
    child = os.fork()
    if child == 0:
        def step(self, batches):
            loss = plain(self, batches)
            if self.step == int(killed_after):
                os.kill(os.getpid(), signal.SIGKILL)
            return loss
        Trainer._train_step = step
        list(Experiment.load(config).trainer(run))
        os._exit(0)
    children.append(child)
for child in children:
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
loop = iter(Experiment.load(sys.argv[1]).trainer(sys.argv[2]))
next(loop)
"""
RECIPES = {
    "plain": ("train.workers=0",),
    "recipe": (
        "train.workers=0",
        "train.ema_decay=0.9",
        "train.gradient_accumulation=2",
        "train.batch_size=1",
    ),
    "recipe_workers": (
        "train.workers=2",
        "train.ema_decay=0.9",
        "train.gradient_accumulation=2",
        "train.optimizer.warmup_steps=3",
    ),
    "average_of_batch_norm": ("model.norm=batch", "train.ema_decay=0.9", "train.optimizer.name=adamw"),
}


def weights_of(run: Path) -> str:
    return hashlib.sha256((run / "model" / "model.safetensors").read_bytes()).hexdigest()


def train(experiment: Experiment, run: Path, *, resume: bool = False) -> str:
    for _ in experiment.trainer(run, resume=resume):
        pass
    return weights_of(run)


def train_with(trainer: Trainer) -> None:
    for _ in trainer:
        pass


def check_rows(run: Path, steps: int) -> None:
    rows = read_metrics(run / "metrics.jsonl")
    assert [row["step"] for row in rows] == list(range(1, steps + 1))


@pytest.fixture(scope="module")
def killed(make_experiment, workplace, tmp_path_factory) -> dict[str, Path]:
    """Runs of `RECIPES` that were killed, each in a different step, and one whose loop was abandoned."""
    folder = tmp_path_factory.mktemp("configs")
    arguments: list[str] = []
    runs = {name: workplace / f"killed_{name}" for name in RECIPES}
    for number, (name, options) in enumerate(RECIPES.items()):
        config = folder / f"{name}.yaml"
        config.write_text(make_experiment(*options).to_yaml())
        arguments += [str(config), str(runs[name]), str(7 - number)]
    left = [str(folder / "recipe_workers.yaml"), str(workplace / "abandoned_loop")]
    (folder / "children.py").write_text(CHILDREN)
    child = start_program(folder / "children.py", *left, *arguments, errors_in_output=True)
    assert child.wait(240) == 0, child.communicate(60)
    child.close()  # without waiting for the loader's processes, which hold its output open
    return runs


@pytest.mark.parametrize(("number", "name"), list(enumerate(RECIPES)))
def test_killed_and_resumed_is_bit_equal(make_experiment, workplace, killed, number, name):
    whole, run = workplace / f"whole_{name}", killed[name]
    expected = train(make_experiment(*RECIPES[name]), whole)
    assert (run / "lock").is_file()  # of a dead process, so it does not stop the next
    assert not (run / "model").exists()
    reached = 7 - number
    saved = [step for step in (2, 4, 6) if step <= reached][-2:]
    assert sorted(p.name for p in (run / "last").glob("step-*")) == [f"step-{step:07d}" for step in saved]
    assert train(Experiment.from_run(run), run, resume=True) == expected
    check_rows(run, 8)
    assert not (run / "lock").exists()
    both = [read_metrics(folder / "metrics.jsonl") for folder in (whole, run)]
    for one, other in zip(*both, strict=True):
        assert {k: one[k] for k in ("loss", "lr")} == {k: other[k] for k in ("loss", "lr")}
        assert one.get("val_dice") == other.get("val_dice")
    best = [(folder / "best" / "model.safetensors").read_bytes() for folder in (whole, run)]
    assert best[0] == best[1]


def test_workers_do_not_change_the_weights(make_experiment, workplace):
    one = train(make_experiment("train.steps=3"), workplace / "no_workers")
    two = train(make_experiment("train.steps=3", "train.workers=2"), workplace / "two_workers")
    assert one == two


def test_a_2d_training_resumes_bit_equal_with_adamw_and_warmup(make_experiment, workplace):
    experiment = make_experiment(
        "model.name=unet_2d", "patch.size=[16, 16]", "train.steps=5", "train.optimizer.name=adamw",
        "train.optimizer.lr=0.001", "train.optimizer.warmup_steps=3", "train.optimizer.schedule=cosine",
    )  # fmt: skip
    expected = train(experiment, workplace / "whole_2d")
    run = workplace / "broken_off_2d"
    for report in experiment.trainer(run):
        if report.step == 3:
            break
    assert train(experiment, run, resume=True) == expected
    check_rows(run, 5)


def test_a_checkpoint_holds_the_scale_of_float16_gradients(make_experiment, workplace):
    run = workplace / "scaled"
    trainer = make_experiment("train.precision=bfloat16", "train.save_every=1").trainer(run)
    trainer.fabric.strategy.precision.scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    next(iter(trainer))
    assert load_checkpoint(run / "last")[1]["precision"]["scale"] == 8


def test_float16_is_refused_where_it_would_be_replaced(make_experiment, workplace):
    with pytest.raises(ConfigError, match=r"train\.precision: found float16 on a processor.*bfloat16"):
        make_experiment("train.precision=float16").trainer(workplace / "float16")


@pytest.fixture(scope="module")
def few_reports(make_experiment, workplace) -> tuple[Path, Experiment]:
    """An uninterrupted run that reports every four steps, and its experiment."""
    experiment = make_experiment("train.steps=8", "train.report_every=4", "train.save_every=1")
    with one_thread():
        train(experiment, workplace / "few_reports")
    return workplace / "few_reports", experiment


@pytest.mark.parametrize("ended", [4, 6])
def test_the_first_report_after_a_resume_counts_the_steps_before_it(
    make_experiment, workplace, few_reports, ended
):
    whole, experiment = few_reports
    run = workplace / f"rows_{ended}"
    trainer = experiment.trainer(run)
    plain = trainer._save

    def stop(meter: Meter) -> None:
        plain(meter)
        if trainer.step == ended:
            raise KeyboardInterrupt

    trainer._save = stop
    with pytest.raises(KeyboardInterrupt):
        train_with(trainer)
    train(experiment, run, resume=True)
    rows, expected = (read_metrics(folder / "metrics.jsonl") for folder in (run, whole))
    assert [row["loss"] for row in rows] == [row["loss"] for row in expected]
    assert [row.get("loss_terms") for row in rows] == [row.get("loss_terms") for row in expected]
    assert all(row["seconds_per_step"] > 0 for row in rows)


def test_an_abandoned_loop_resumes_bit_equal(make_experiment, workplace):
    experiment = make_experiment("train.steps=5", "model.norm=batch")
    expected = train(experiment, workplace / "whole_batch_norm")
    run = workplace / "abandoned"
    loop = iter(experiment.trainer(run))
    for _ in range(3):
        next(loop)
    assert train(experiment, run, resume=True) == expected  # although the first loop still exists
    loop.close()
    check_rows(run, 5)


@pytest.fixture(scope="module")
def five_steps(make_experiment, workplace) -> str:
    """The weights of an uninterrupted training of five steps."""
    with one_thread():
        return train(make_experiment("train.steps=5", "train.save_every=100"), workplace / "five_steps")


@pytest.mark.parametrize(
    ("received", "code", "workers"),
    [(signal.SIGTERM, 143, 0), (signal.SIGINT, 130, 2), (signal.SIGUSR1, 143, 2)],
)
def test_a_signal_saves_the_state_and_the_run_can_be_resumed(
    make_experiment, workplace, five_steps, received, code, workers
):
    experiment = make_experiment("train.steps=5", "train.save_every=100", f"train.workers={workers}")
    run = workplace / f"signalled_{received}_{workers}"
    before = [signal.getsignal(number) for number in SIGNALS]
    others = set(multiprocessing.active_children())  # of abandoned loops of other tests

    def go() -> None:
        for report in experiment.trainer(run):
            if report.step == 2:
                children = set(multiprocessing.active_children()) - others
                assert len(children) == workers
                for pid in [child.pid for child in children] + [os.getpid()]:
                    assert pid is not None
                    os.kill(pid, received)  # as a scheduler and Ctrl-C do, to the whole group

    with pytest.raises(Interrupted, match="stopped at step 3 of 5, state saved") as caught:
        go()
    assert caught.value.exit_code == code
    assert [signal.getsignal(number) for number in SIGNALS] == before
    assert [p.name for p in (run / "last").iterdir()] == ["step-0000003"]
    assert train(experiment, run, resume=True) == five_steps
    check_rows(run, 5)


def test_a_killed_worker_ends_the_training_and_the_run_can_be_resumed(make_experiment, workplace):
    experiment = make_experiment(
        "train.steps=200", "train.save_every=1", "train.workers=2", "train.report_every=1"
    )
    run = workplace / "lost_worker"
    before = {child.pid for child in multiprocessing.active_children()}  # of abandoned loops of other tests

    def workers() -> list[int]:
        return [
            child.pid for child in multiprocessing.active_children() if child.pid and child.pid not in before
        ]

    def go() -> None:
        for report in experiment.trainer(run):
            if report.step == 2:
                os.kill(workers()[0], signal.SIGKILL)

    with pytest.raises(
        ResourceError, match=r"train\.workers: worker process \d+ .*memory runs out"
    ) as caught:
        go()
    assert caught.value.exit_code == 4
    assert workers() == []
    trainer = experiment.trainer(run, resume=True)
    assert trainer.step >= 2
    next(iter(trainer))


def test_an_abandoned_loop_does_not_keep_its_process_alive(killed, workplace):
    """The workers, which ignore stop signals, are ended; `killed` has waited for the process."""
    assert [row["step"] for row in read_metrics(workplace / "abandoned_loop" / "metrics.jsonl")] == [1]


def test_command_stopped_by_sigterm_says_how_to_resume(
    make_experiment, workplace, tmp_path, monkeypatch, capsys
):
    from medseg.train.reports.reporting import Report, ReportLog

    plain = ReportLog.add

    def add(self: ReportLog, report: Report) -> None:
        plain(self, report)
        if report.step == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(ReportLog, "add", add)
    config = tmp_path / "toy.yaml"
    config.write_text(make_experiment("train.steps=4").to_yaml())
    run = workplace / "stopped command"
    assert main(["train", str(config), "--run", str(run)]) == 143
    output = capsys.readouterr().err
    assert "stopped at step 2 of 4, state saved" in output
    assert f"resume with: medseg train --resume '{run}'" in output
    monkeypatch.setattr(ReportLog, "add", plain)
    assert main(["train", "--resume", str(run)]) == 0
    assert f"model: {run / 'model'}" in capsys.readouterr().out
    check_rows(run, 4)


def test_a_group_signal_with_workers_still_saves(make_experiment, workplace, tmp_path):
    """Schedulers signal workers too; if a worker died of the signal, the loop would end with a traceback."""
    config = tmp_path / "toy.yaml"
    config.write_text(
        make_experiment("train.steps=100000", "train.workers=2", "train.save_every=100000").to_yaml()
    )
    run = workplace / "group"
    child = start_program("-m", "medseg", "train", config, "--run", run, new_session=True)
    for line in child.stdout:
        if line.startswith("step 3/"):
            os.killpg(child.pid, signal.SIGTERM)
            break
    _, output = child.communicate(timeout=300)
    assert child.returncode == 143, output
    assert "state saved" in output
    assert "Traceback" not in output


def test_a_finished_run_resumes_to_nothing(make_experiment, workplace):
    experiment = make_experiment("train.steps=2")
    run = workplace / "finished"
    expected = train(experiment, run)
    assert list(experiment.trainer(run, resume=True)) == []
    assert weights_of(run) == expected


def test_what_a_killed_process_left_is_removed_although_nothing_is_left_to_train(
    make_experiment, workplace, monkeypatch
):
    experiment = make_experiment("train.steps=2")
    run = workplace / "killed_at_the_end"
    train(experiment, run)
    ended = subprocess.Popen(["true"])
    ended.wait()
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: ended.pid)
        left = [temporary_folder(run / "last" / "step-0000002"), temporary_folder(run / "best", "old")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "weights.safetensors").write_text("half")
    for old in (
        "step-0000000",
        "step-0000001",
    ):  # killed after the last save and before the oldest one was removed
        left.append(shutil.copytree(run / "last" / "step-0000002", run / "last" / old))
    kept = left.pop()
    assert list(experiment.trainer(run, resume=True)) == []
    assert not any(folder.exists() for folder in left)
    assert kept.exists()


def test_a_run_is_never_overwritten(make_experiment, workplace):
    experiment = make_experiment("train.steps=1")
    run = workplace / "precious"
    expected = train(experiment, run)
    seen = []
    with pytest.raises(ConfigError, match="expected a new or empty folder"):
        experiment.trainer(run, progress=lambda *case: seen.append(case))
    assert seen == []  # refused before any case was prepared
    assert weights_of(run) == expected


def test_resume_refuses_another_config_and_an_empty_folder(make_experiment, workplace):
    run = workplace / "other_config"
    train(make_experiment("train.steps=1"), run)
    with pytest.raises(ConfigError, match=r"config\.yaml: differs from the given experiment"):
        make_experiment("train.steps=2").trainer(run, resume=True)
    with pytest.raises(ConfigError, match="found no run to resume"):
        make_experiment().trainer(workplace / "nothing", resume=True)
    assert not (workplace / "nothing").exists()


def test_resume_keeps_its_split_when_cases_are_added(make_experiment, workplace, tmp_path):
    from medseg.data.datasets.phantom import write_phantoms
    from medseg.data.datasets.splits import read_splits

    write_phantoms(tmp_path / "data", cases=4, shape=(20, 20, 18), spacing=(13, 14, 14))
    experiment = make_experiment(f"data.path={tmp_path / 'data'}", "train.steps=2")
    run = tmp_path / "run"
    for _ in experiment.trainer(run):
        break
    before = (run / "splits.json").read_bytes()
    dataset = write_phantoms(tmp_path / "data", cases=7, shape=(20, 20, 18), spacing=(13, 14, 14))
    train(experiment, run, resume=True)
    assert (run / "splits.json").read_bytes() == before
    assert len(read_splits(run / "splits.json", dataset.labelled_cases)[0].train) == 2


def test_changed_files_change_neither_measured_statistics_nor_names(tmp_path):
    write_toy_data(tmp_path, 4)
    experiment = toy_experiment(tmp_path, "train.steps=2", "preprocess.normalize=ct", folds=2, report_every=1)
    run = tmp_path / "run"
    begun = experiment.trainer(run)
    next(iter(begun))
    case = read_splits(run / "splits.json")[0].train[0]
    file = tmp_path / "data" / "labelsTr" / f"{case}.nii.gz"
    label = read_labels(file)
    write(label.with_data(label.data * (label.data == 1)), file)
    table = tmp_path / "data" / "dataset.json"
    table.write_text(table.read_text().replace("liver", "hepar"))
    resumed = Experiment.from_run(run).trainer(run, resume=True)
    assert resumed.run.saved.preprocessing == begun.run.saved.preprocessing
    assert resumed.run.labels == begun.run.labels
    for name in ("preprocessing.yaml", "labels.tsv"):
        (run / name).unlink()
        with pytest.raises(MedsegError, match=name):
            Experiment.from_run(run).trainer(run, resume=True)
