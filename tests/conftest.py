"""Fixtures that every folder of tests may use; nothing heavy is imported here."""

from __future__ import annotations

import os
import runpy
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

from medseg.volumes.grid import Grid
from medseg.volumes.volume import Kind, Volume
from tests.helpers.extras import skip_unless_installed
from tests.helpers.paths import SHARED_FOLDER
from tests.helpers.redundant_coverage import is_unmeasured, unmeasured

# As the command does, before anything loads torch: on a busy machine spinning threads starve each other.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
if "PYTEST_XDIST_WORKER" in os.environ:  # one process a core, so one thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C, which some of them send.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No test may reach another machine, nor may the processes that it starts; see tests/helpers/offline/sitecustomize.py.
_OFFLINE = Path(__file__).parent / "helpers" / "offline"
if os.environ.get("MEDSEG_TESTS_OFFLINE") != "1":
    os.environ["MEDSEG_TESTS_OFFLINE"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, (str(_OFFLINE), os.environ.get("PYTHONPATH", "")))
    )
    runpy.run_path(str(_OFFLINE / "sitecustomize.py"))

# How long an example takes depends on what else the machine does.
settings.register_profile("medseg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("medseg")


def pytest_xdist_auto_num_workers() -> int:
    """Return one process more than there are cores, because many tests wait for processes that they start."""
    return len(os.sched_getaffinity(0)) + 1 if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1) + 1


pytest_plugins = (
    "tests.helpers.children",
    "tests.helpers.golden_preprocessing",
    "tests.helpers.predictors",
    "tests.helpers.stored_cases",
    "tests.helpers.trainings",
)

MakeVolume = Callable[..., Volume]


def _present(folder: Path) -> Path:
    if not folder.is_dir():
        pytest.skip(f"real data are not beside the checkout ({folder.name})")
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder of real images; a test that asks for it is skipped where it is absent."""
    return _present(SHARED_FOLDER / "data")


@pytest.fixture(scope="session")
def shared_reference() -> Path:
    """Folder of golden values; a test that asks for it is skipped where it is absent."""
    return _present(SHARED_FOLDER / "reference")


@pytest.fixture
def make_volume() -> MakeVolume:
    """Factory of small random volumes: ``make_volume((5, 6, 7), spacing=(1, 1, 3), kind="label")``."""

    def make(
        shape: Sequence[int] = (7, 6, 5),
        *,
        spacing: Sequence[float] = (1.0, 1.25, 2.0),
        axcodes: str = "RAS",
        affine: Any = None,
        channels: int = 1,
        dtype: Any = None,
        kind: Kind = "image",
        seed: int = 0,
    ) -> Volume:
        generator = np.random.default_rng(seed)
        dtype = np.dtype(dtype or (np.uint8 if kind == "label" else np.float32))
        if kind == "label":
            data = generator.integers(0, 4, (channels, *shape)).astype(dtype)
        elif dtype.kind == "f":
            data = generator.normal(0, 300, (channels, *shape)).astype(dtype)
        else:
            low, high = (0, 2) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
            data = generator.integers(
                low,
                high,
                (channels, *shape),
                dtype=np.dtype("u1") if dtype.kind == "b" else dtype.newbyteorder("="),
            )
            data = data.astype(dtype)
        grid = (
            Grid(tuple(shape), affine)
            if affine is not None
            else Grid.from_spacing(shape, spacing).reoriented(axcodes)
        )
        return Volume(data, grid, kind)

    return make


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests of packages and programs that are not installed."""
    skip_unless_installed(item)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the notebooks, and leave tests out of the coverage to which they add nothing.

    Notebooks take longest: begun last, one process would be left working alone.
    """
    items.sort(key=lambda item: item.path.name != "test_notebooks.py")
    listed = unmeasured()
    for item in items:
        if is_unmeasured(item, listed):
            item.add_marker(pytest.mark.no_cover)
