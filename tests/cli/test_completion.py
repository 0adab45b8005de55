"""Tab completion in a shell."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from medseg.cli.main import main
from tests.helpers.paths import ROOT

COMPLETE = """
complete() {{ :; }}
source {script}
COMP_WORDS=({words})
COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
COMP_LINE="{words}" COMP_POINT={point} _shtab_medseg
echo "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("medseg pre", ["predict"]),
        ("medseg train --re", ["--repairs", "--resume"]),
        ("medseg plan --dims ", ["2", "3"]),
        ("medseg train configs/phantom/unet_3", ["configs/phantom/unet_3d.yaml"]),
        ("medseg import nn", ["nnunet"]),
    ],
)
@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_commands_options_choices_and_files(words, offered, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        main(["--completion", "bash"])
    assert end.value.code == 0
    script = tmp_path / "completion.bash"
    script.write_text(capsys.readouterr().out)
    listed = words if not words.endswith(" ") else f"{words}''"
    program = COMPLETE.format(script=script, words=listed, point=len(words))
    found = subprocess.run(
        ["bash", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    )
    assert sorted(found.stdout.split()) == offered


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_scripts(shell, capsys):
    with pytest.raises(SystemExit):
        main(["--completion", shell])
    assert "predict" in capsys.readouterr().out
