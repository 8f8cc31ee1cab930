"""The command's front door."""

import subprocess
import sys
from pathlib import Path

import pytest

from sightline import __version__
from sightline.tools.main import MODULES, TOOLS, main


def test_help_names_every_tool(capsys):
    assert main([]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in TOOLS)


def test_version(capsys):
    assert main(["--version"]) == 0
    assert __version__ in capsys.readouterr().out


def test_mistyped_tool(capsys):
    assert main(["trian"]) == 2
    assert "did you mean 'train'?" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "near"),
    [
        (["check", "coco", "--no-progess"], "--no-progress"),
        (["convert", "coco", "--to", "voc", "--out", "voc", "--category", "cat"], "--categories"),
        (["evaluate", "best.ckpt", "--fliip"], "--flip"),
        (["inspect", "vgg16", "--dpeth", "1"], "--depth"),
        (["predict", "best.ckpt", "street.jpg", "--socre", "0.3"], "--score"),
        (["propose", "voc", "--metod", "sliding_window"], "--method"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_mistyped_option(words, near, capsys):
    with pytest.raises(SystemExit) as stopped:
        main(words)
    error = capsys.readouterr().err
    assert stopped.value.code == 2
    assert f"did you mean {near!r}?" in error
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    "tool", ["train", *(pytest.param(name, marks=pytest.mark.slow) for name in TOOLS if name != "train")]
)
def test_each_tool_also_runs_as_a_file(tool, tmp_path):
    path = Path(__file__).parents[2] / "tools" / f"{MODULES.get(tool, tool)}.py"
    done = subprocess.run([sys.executable, path, "--help"], capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout.lower()


def test_a_file_that_cannot_be_opened_is_named_first(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr("sightline.tools.check.check", lambda *_, **__: tmp_path.read_text())
    assert main(["check", "coco"]) == 2
    assert capsys.readouterr().err == f"sightline check: {tmp_path}: Is a directory\n"
