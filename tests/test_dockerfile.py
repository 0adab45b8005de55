"""The Dockerfile copies what exists, installs declared extras, and follows hadolint's rules where that is installed."""

from __future__ import annotations

import re
import subprocess
import tomllib

import pytest

from tests.helpers.extras import program
from tests.helpers.paths import ROOT

TEXT = (ROOT / "Dockerfile").read_text()


def test_what_it_copies_is_in_the_checkout_and_sent_to_the_builder():
    sent = (ROOT / ".dockerignore").read_text().split()
    lines = [line.split()[1:-1] for line in TEXT.splitlines() if re.match(r"COPY (?!--from)", line)]
    copied = {name for names in lines for name in names}
    assert copied >= {"pyproject.toml", "medseg", "constraints.txt"}
    for name in copied:
        assert (ROOT / name).exists(), name
        assert f"!{name}" in sent, name


def test_extras_are_declared():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = [one for line in re.findall(r"ARG EXTRAS=(\S+)", TEXT) for one in line.split(",")]
    assert named
    assert set(named) <= set(declared)


def test_both_targets_run_without_privileges():
    stages = re.split(r"(?m)^FROM ", TEXT)[1:]
    final = [stage for stage in stages if "ENTRYPOINT" in stage]
    assert len(final) == 2
    assert all("\nUSER 1000\n" in stage for stage in final)
    assert all(stage.index("USER 1000") < stage.index("ENTRYPOINT") for stage in final)


@pytest.mark.extra("hadolint")
def test_hadolint_has_no_findings():
    hadolint = program("hadolint")
    assert hadolint is not None
    found = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True, timeout=60, check=False
    )
    assert found.returncode == 0, found.stdout
