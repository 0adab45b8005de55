"""A wrong path or name is answered before libraries are loaded that take seconds."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT

WRONG = {
    "predict nomodel ct.nii.gz -o out": "nomodel: no such folder, expected a model folder",
    "predict configs noct.nii.gz -o out": "noct.nii.gz: no such file or folder",
    "predict configs ct.nii.gz -o out --ensemble-with nomodel": "nomodel: no such folder, expected a model folder",
    "train noconfig.yaml": "noconfig.yaml: no such file",
    "train configs/phantom/unet_3d.yml": "Did you mean 'unet_3d.yaml'?",
    "train configs/phantom/unet_3d.yaml --data nodata": "nodata: no such file or folder, expected a dataset",
    "train configs/phantom/unet_3d.yaml model.name=unet_4d": "unknown model 'unet_4d'. Did you mean",
    "train --resume norun": "norun: no such folder, expected a run",
    "evaluate nofolder configs": "nofolder: no such file or folder",
    "evaluate configs nofolder": "nofolder: no such file or folder",
    "compare norun configs": "norun: no such folder, expected a cross-validation",
    "plan nodata": "nodata: no such file or folder, expected a dataset",
    "check nodata": "nodata: no such file or folder",
    "inspect nofile": "nofile: no such file or folder",
    "view noct.nii.gz": "noct.nii.gz: no such file or folder",
    "view README.md nolabels.nii.gz": "nolabels.nii.gz: no such file or folder",
    "config noconfig.yaml": "noconfig.yaml: no such file",
    "config configs/phantom/unet_3d.yaml model.name=unet_4d": "unknown model 'unet_4d'. Did you mean",
    "models unet_4d": "no model matches 'unet_4d'. Did you mean",
    "clean noruns": "noruns: no such folder, expected the folder of runs",
    "import nnunet nomodel -o out": "nomodel: no such file or folder",
    "import monai noweights --network unet --config README.md --labels README.md -o out": "noweights: no such file or folder",
    "export onnx nomodel -o out.onnx": "nomodel: no such folder, expected a model folder",
}
HEAVY = ("torch", "monai", "SimpleITK", "nibabel", "scipy", "skimage", "matplotlib", "pydicom", "dask")
SCRIPT = """
import contextlib, io, json, sys
from medseg.cli.main import main

answers = {}
for command in json.load(sys.stdin):
    error = io.StringIO()
    with contextlib.redirect_stderr(error):
        code = main(command.split())
    answers[command] = [code, error.getvalue(), sorted({name.split(".")[0] for name in sys.modules})]
json.dump(answers, sys.stdout)
"""


@pytest.fixture(scope="module")
def answers():
    program = [sys.executable, "-c", SCRIPT]
    found = subprocess.run(
        program,
        check=False,
        input=json.dumps(list(WRONG)),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert found.returncode == 0, found.stderr
    return json.loads(found.stdout)


@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_name_is_answered_without_heavy_libraries(answers, command):
    code, error, loaded = answers[command]
    assert code == 1
    assert WRONG[command] in error
    assert not {*HEAVY} & {*loaded}
