"""The command as such: instant help, exit codes, no tracebacks."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
from importlib import import_module

import pytest

from medseg.cli.main import COMMANDS, RENAMED_OPTIONS, build_parser, main
from medseg.errors import DataError, ResourceError
from medseg.yaml_dialect import parse_yaml

HEAVY = ("torch", "monai", "SimpleITK", "matplotlib", "tensorboard", "lightning_fabric")


def loaded_by(code: str) -> list[str]:
    """Heavy packages that a fresh interpreter has imported after running `code`."""
    ending = (
        f"\nimport json, sys\nprint(json.dumps([n for n in {HEAVY!r} if n in sys.modules]), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code + ending], capture_output=True, text=True, check=True)
    found: list[str] = json.loads(done.stderr.splitlines()[-1])
    return found


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["models"], ["models", "unet_3d"], ["config"], ["--version"]],
)
def test_quick_commands_import_no_heavy_libraries(arguments):
    code = (
        "from medseg.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as end:\n    assert end.code == 0"
    )
    assert loaded_by(code) == []


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_every_command_names_it(command, capsys):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"medseg {command}" in capsys.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["tarin"],
        ["train", "--nonsense"],
        ["models", "--classes", "two"],
        ["demo", "--run"],
        ["config", "a.yaml", "b=1", "--oops"],
    ],
)
def test_usage_errors_end_with_1(arguments, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 1
    assert "usage: medseg" in capsys.readouterr().err


def test_as_a_module_without_traceback():
    done = subprocess.run(
        [sys.executable, "-m", "medseg", "config", "/nowhere/x.yaml"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert (
        done.stderr.strip()
        == "medseg config: /nowhere/x.yaml: no such file. Give the path of a YAML experiment."
    )


def test_debug_shows_the_traceback():
    from medseg.errors import ConfigError

    with pytest.raises(ConfigError):
        main(["--debug", "config", "/nowhere/x.yaml"])


def test_an_interrupt_ends_with_130(monkeypatch, capsys):
    def stop(_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr("medseg.cli.models.models.run", stop)
    assert main(["models"]) == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.skipif(sys.platform == "win32", reason="a process sends a signal to itself")
@pytest.mark.parametrize(
    "error", [ResourceError("torchrun: process 0 lost its connection."), KeyboardInterrupt()]
)
def test_a_signal_during_the_report_of_an_error_changes_nothing(monkeypatch, capsys, error):
    """torchrun ends the ranks that report the loss of another one."""
    plain = print

    def print_and_receive(*words, **options):
        os.kill(os.getpid(), signal.SIGTERM)
        plain(*words, **options)

    def fail(_):
        raise error

    monkeypatch.setattr("medseg.cli.models.models.run", fail)
    monkeypatch.setattr("medseg.cli.main.print", print_and_receive, raising=False)
    before = signal.getsignal(signal.SIGTERM)
    assert main(["models"]) == (4 if isinstance(error, ResourceError) else 130)
    assert (
        "lost its connection" if isinstance(error, ResourceError) else "interrupted"
    ) in capsys.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.skipif(sys.platform == "win32", reason="a process sends a signal to itself")
def test_a_signal_at_the_moment_of_an_error_ends_without_a_traceback(monkeypatch):
    def fail(_):
        raise DataError("a.nii: damaged.")

    monkeypatch.setattr("medseg.cli.models.models.run", fail)
    monkeypatch.setattr("medseg.cli.main._ignore_sigterm", lambda: os.kill(os.getpid(), signal.SIGTERM))
    assert main(["models"]) == 143


def test_closed_pipe_prints_no_traceback():
    code = "from medseg.cli.main import main; import sys; sys.exit(main(['config', '--schema']))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stderr is not None
        child.stdout.close()
        told = child.stderr.read()
    assert b"Traceback" not in told, told.decode()


def test_models_lists_and_describes(capsys):
    assert main(["models", "unet*"]) == 0
    listed = capsys.readouterr().out
    family, first, _, *notes = listed.splitlines()
    assert family.startswith("U-Nets for volumes and slices")
    assert first.split()[0] == "unet_2d"
    assert "1,926,466 (1→2)" in first
    assert len(notes) == 2
    assert main(["models", "unet_3d", "channels=[4, 8]", "--input", "1,16,16,16", "--classes", "3"]) == 0
    told = capsys.readouterr().out
    assert "parameters" in told
    (norm,) = (line.split(maxsplit=2) for line in told.splitlines() if line.startswith("  norm "))
    assert norm[:2] == ["norm", "instance"]
    assert norm[2].startswith("instance, batch, group")
    assert main(["models", "unet_3d", "channels=[4, 8]", "--yaml"]) == 0
    stages = parse_yaml(capsys.readouterr().out.partition("\n")[2])["encoder_stages"]
    assert [stage["channels"] for stage in stages] == [4, 8]
    assert main(["models", "unet_4d"]) == 1
    assert "Did you mean" in capsys.readouterr().err
    assert main(["models", "unet_3d", "--input", "1,x"]) == 1
    assert "--input: found '1,x'" in capsys.readouterr().err


def test_config_prints_a_file_that_reads_back(tmp_path, capsys):
    assert main(["config"]) == 0
    (tmp_path / "all.yaml").write_text(capsys.readouterr().out)
    assert main(["config", str(tmp_path / "all.yaml"), "train.steps=7", "train.optimizer.lr=1e-3"]) == 0
    printed = capsys.readouterr().out
    assert "steps: 7" in printed
    assert "lr: 0.001" in printed
    assert main(["config", "--schema"]) == 0
    assert "train" in json.loads(capsys.readouterr().out)["properties"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("compare", "run", "--ensmbles"), "--ensmbles: no such option. Did you mean '--ensembles'?"),
        (
            ("predict", "m", "i.nii.gz", "--overlap=0.5"),
            "--overlap: no such option. Settings are given as key=value.",
        ),
        (("evaluate",), "the following arguments are required: prediction\n"),
    ],
)
def test_unknown_options_of_a_command(words, told, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(list(words))
    assert stopped.value.code == 1
    captured = capsys.readouterr().err
    assert told in captured
    assert captured.startswith(f"usage: medseg {words[0]}")


def test_debug_is_accepted_before_and_after_the_command(tmp_path):
    for words in (["--debug", "inspect", str(tmp_path)], ["inspect", str(tmp_path), "--debug"]):
        with pytest.raises(DataError):
            main(words)


@pytest.mark.parametrize(
    ("command", "option", "expected"),
    [
        (["evaluate", "a", "b"], "--best", "medseg compare RUN RUN"),
        (["evaluate", "a", "b"], "--parts", "renamed to --components-of"),
        (["evaluate", "a", "b"], "--parts=both", "renamed to --components-of"),
    ],
)
def test_an_old_option_is_answered_with_the_new_one(command, option, expected, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*command, option])
    assert stopped.value.code == 1
    told = capsys.readouterr().err
    assert option.partition("=")[0] in told
    assert expected in told


def test_every_new_option_exists():
    """The table of old options names options and commands that there are, once the old ones are gone."""
    parser = build_parser()
    for (command, old), words in RENAMED_OPTIONS.items():
        found = parser
        for word in command.split():
            (commands,) = (a for a in found._actions if isinstance(a, argparse._SubParsersAction))
            found = commands.choices[word]
        options = found.format_help()
        if old not in options:
            new = re.search(r"renamed to (--[a-z-]+)", words)
            assert new is None or new[1] in options, (command, old)


@pytest.mark.parametrize(
    ("words", "images"),
    [
        (["m", "-o", "o", "--", "-x.nii.gz"], ["-x.nii.gz"]),
        (["-o", "o", "--", "m", "-x.nii.gz", "--help"], ["-x.nii.gz", "--help"]),
        (["m", "a.nii.gz", "-o", "o", "--", "--", "-o"], ["a.nii.gz", "--", "-o"]),
    ],
)
def test_words_after_two_dashes_are_no_options(words, images, monkeypatch):
    seen = []
    module = import_module("medseg.cli.prediction.predict")
    monkeypatch.setattr(module, "run", lambda options: seen.append(options) or 0)
    assert main(["predict", *words]) == 0
    assert (seen[0].model, seen[0].images, str(seen[0].output)) == ("m", images, "o")


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ResourceError("a lost worker."), 4, "a lost worker."),
        (MemoryError(), 4, "too little memory"),
        (
            RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"),
            4,
            "can't allocate",
        ),
        (
            OSError(28, "No space left on device", "out/a"),
            4,
            "out/a: cannot be written (No space left on device)",
        ),
        (PermissionError(13, "Permission denied", "/closed/a"), 1, "/closed/a: "),
    ],
)
def test_a_lack_of_resources_is_one_message_with_its_own_code(error, code, message, monkeypatch, capsys):
    def fail(options):
        raise error

    monkeypatch.setattr(import_module("medseg.cli.data.inspect"), "run", fail)
    assert main(["inspect", "a"]) == code
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told
    with pytest.raises(type(error)):
        main(["inspect", "a", "--debug"])


def test_escape_sequences_in_a_file_name_are_shown(tmp_path, capsys):
    assert main(["inspect", str(tmp_path / "a\x1b[2J.nii.gz")]) == 1
    assert "a\\x1b[2J.nii.gz: no such file" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "kept"),
    [
        (["data.view", "view", "a.nii"], False),
        (["prediction.evaluate", "evaluate", "a", "b"], False),
        (["prediction.predict", "predict", "model", "a.nii", "-o", "out"], True),
        (["training.train", "train", "a.yaml"], True),
    ],
)
def test_only_commands_that_write_results_in_between_claim_to_keep_them(words, kept, monkeypatch, capsys):
    def stop(options):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module(f"medseg.cli.{words[0]}"), "run", stop)
    assert main(words[1:]) == 130
    message = capsys.readouterr().err
    assert message.startswith(f"medseg {words[1]}: interrupted")
    assert ("finished results are kept" in message) == kept
