"""Fixtures shared by all tests."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as the commands do, before torch is imported: see tools/main.py
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SIGHTLINE_DATA", ROOT.parent / "shared" / "data"))


@pytest.fixture(scope="session")
def real_data():
    """A function from a folder's name to its path among the real data sets; skips the test where it is absent."""

    def find(name: str) -> Path:
        path = DATA / name
        if not path.exists():
            pytest.skip(f"real data not found at {path}; set SIGHTLINE_DATA to the folder that holds {name!r}")
        return path

    return find


@pytest.fixture(autouse=True, scope="session")
def _cache(tmp_path_factory):
    """What tests compute is kept neither beside the data nor in the user's own cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SIGHTLINE_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    """Models answer in float32 on every CPU, so that a number does not depend on whose machine tests it."""
    from sightline.backbone import precision

    real = precision.has_bfloat16
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: torch.device(device).type != "cpu" and real(device))


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)
