"""Checkpoints are used only if they are complete."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from medseg.errors import DataWarning, ModelError, ResourceError
from medseg.storage.temporary_names import temporary_folder
from medseg.train.checkpoint import load_checkpoint, remove_old_checkpoints, save_checkpoint
from tests.helpers.runs import files_of_at_most


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return save_checkpoint(
        folder, step, {"w": torch.full((3,), float(step))}, {"step": step, "best": 0.5}, keep
    )


def step_in(folder: Path) -> int:
    found = load_checkpoint(folder)
    assert found is not None
    weights, state = found
    assert weights["w"].tolist() == [state["step"]] * 3
    return int(state["step"])


def flip_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


def test_round_trip_keeps_bits_and_plain_types(tmp_path):
    weights = {
        "a": torch.randn(2, 3),
        "b": torch.tensor(7),
        "c": torch.randn(1, 2, 4, 4, 4).to(memory_format=torch.channels_last_3d),
    }
    state = {
        "optimizer": {"state": {0: {"momentum_buffer": torch.randn(3)}}, "param_groups": [{"lr": 0.1}]},
        "step": 3,
    }
    save_checkpoint(tmp_path / "last", 3, weights, state)
    found = load_checkpoint(tmp_path / "last")
    assert found is not None
    assert all(torch.equal(found[0][name], tensor) for name, tensor in weights.items())
    assert torch.equal(
        found[1]["optimizer"]["state"][0]["momentum_buffer"],
        state["optimizer"]["state"][0]["momentum_buffer"],
    )
    assert found[1]["step"] == 3


def test_a_full_disk_raises_an_error_and_keeps_the_last_checkpoint(tmp_path):
    state = {"step": 2, "optimizer": torch.zeros(5000)}
    save(tmp_path / "last", 1)
    with pytest.raises(ResourceError, match=r"step-0000002: cannot be written \("), files_of_at_most(13000):
        save_checkpoint(tmp_path / "last", 2, {"w": torch.zeros(3)}, state)
    assert [path.name for path in (tmp_path / "last").iterdir()] == ["step-0000001"]
    assert step_in(tmp_path / "last") == 1


def test_a_missing_folder_has_no_checkpoint(tmp_path):
    assert load_checkpoint(tmp_path / "last") is None


def test_the_newest_two_checkpoints_are_kept(tmp_path):
    for step in (1, 2, 9, 10, 11):
        save(tmp_path, step)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000010", "step-0000011"]
    assert step_in(tmp_path) == 11


def test_files_of_a_killed_process_are_removed_by_the_next_save(tmp_path, monkeypatch):
    process = subprocess.Popen(["true"])
    process.wait()
    with monkeypatch.context() as patch:
        patch.setattr("os.getpid", lambda: process.pid)
        temporary_folder(tmp_path / "step-0000003").mkdir()
        temporary_folder(tmp_path / "step-0000001", "old").mkdir()
        (tmp_path / "step-0000001").mkdir()
    save(tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000001", "step-0000004"]


@pytest.mark.parametrize("name", ["weights.safetensors", "state.pt", "manifest.json"])
@pytest.mark.parametrize("fault", ["missing", "flipped byte", "truncated", "empty"])
def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(tmp_path, name, fault):
    save(tmp_path, 1)
    victim = save(tmp_path, 2) / name
    if fault == "missing":
        victim.unlink()
    elif fault == "flipped byte":
        flip_byte(victim)
    else:
        victim.write_bytes(
            victim.read_bytes()[: len(victim.read_bytes()) // 2 if fault == "truncated" else 0]
        )
    with pytest.warns(DataWarning, match=r"step-0000002.*Training goes on from step-0000001"):
        assert step_in(tmp_path) == 1


def test_an_error_names_the_file_if_no_checkpoint_is_intact(tmp_path):
    for step in (1, 2):
        flip_byte(save(tmp_path, step) / "weights.safetensors")
    with pytest.raises(ModelError, match=r"step-0000002/weights\.safetensors: found .*expected"):
        load_checkpoint(tmp_path)


def test_an_interrupted_write_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 1)

    def full(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("medseg.train.checkpoint.write_manifest", full)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path, 2)
    assert step_in(tmp_path) == 1


def test_state_that_would_run_code_is_not_loaded(tmp_path):
    """It is refused even if the manifest of the folder matches."""
    from medseg.storage.manifest import write_manifest

    folder = save(tmp_path, 1)

    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("code ran",)

    torch.save({"step": 1, "evil": Evil()}, folder / "state.pt")
    write_manifest(folder)
    with pytest.raises(ModelError, match=r"state\.pt: found builtins\.print in it"):
        load_checkpoint(tmp_path)


def test_old_checkpoints_up_to_a_step_are_removed(tmp_path):
    for step in (2, 4, 6, 8):
        save(tmp_path / "last", step, keep=9)
    remove_old_checkpoints(tmp_path / "last", 6)
    assert sorted(path.name for path in (tmp_path / "last").iterdir()) == [
        "step-0000004",
        "step-0000006",
        "step-0000008",
    ]


def test_a_damaged_later_checkpoint_does_not_displace_an_earlier_one(tmp_path):
    for step in (2, 6):
        save(tmp_path / "last", step)
    flip_byte(tmp_path / "last" / "step-0000006" / "state.pt")
    save(tmp_path / "last", 4)
    assert [path.name for path in sorted((tmp_path / "last").iterdir())] == [
        "step-0000002",
        "step-0000004",
        "step-0000006",
    ]
    with pytest.warns(DataWarning, match="Training goes on from step-0000004"):
        assert step_in(tmp_path / "last") == 4


def test_checkpoints_are_ordered_by_step_and_not_by_name(tmp_path):
    for step in (9_999_999, 10_000_000, 10_000_001):
        save(tmp_path, step)
    assert step_in(tmp_path) == 10_000_001
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-10000000", "step-10000001"]


def test_a_copy_of_a_checkpoint_is_left_alone(tmp_path):
    save(tmp_path, 2)
    copy = shutil.copytree(tmp_path / "step-0000002", tmp_path / "step-0000002 (copy)")
    for step in (3, 4):
        save(tmp_path, step)
    assert copy.is_dir()
    assert step_in(tmp_path) == 4
