"""What the README's first command promises. Minutes on two cores: `pytest -m slow`."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_first_command_learns_shapes(tmp_path):
    command = [sys.executable, "-m", "sightline.tools.main", "train"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads((tmp_path / "runs/shapes/1/results.json").read_text())
    assert results["AP"] >= 0.50
    assert len(results["per_class"]) == 6
