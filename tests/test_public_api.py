"""The dozen names of the package: all there, all documented, and free until they are used."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import version

import pytest

import medseg

HEAVY = ("torch", "monai", "SimpleITK", "matplotlib", "nibabel", "numpy", "pydantic", "scipy")


def test_importing_the_package_imports_nothing():
    code = f"import sys, medseg; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_reading_a_file_needs_no_torch(tmp_path, make_volume):
    path = tmp_path / "a.nii.gz"
    medseg.write(make_volume(), path)
    code = f"import sys, medseg; medseg.read({str(path)!r}); print([n for n in ('torch', 'monai', 'SimpleITK') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("name", medseg.__all__)
def test_every_name_is_there_and_documented(name):
    value = getattr(medseg, name)
    assert value.__doc__
    assert value.__doc__.strip()


def test_dir_lists_the_names():
    assert set(medseg.__all__) <= set(dir(medseg))


def test_the_version_is_that_of_the_installed_package():
    assert medseg.__version__ == version("medseg")


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="nonsense"):
        _ = medseg.nonsense
