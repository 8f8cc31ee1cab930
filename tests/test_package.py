"""What is installed is what is in the repository: its list of packages is written by hand."""

import importlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).parent.parent

# Folders that are not installed.
ASIDE = {"tests", "benchmarks", "docs"}
INSTALLED = {".py", ".yaml", ".typed"}


@pytest.fixture(scope="module")
def tracked():
    """Paths of the repository's files, new ones that git does not ignore included; skips outside a clone."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        pytest.skip("git is not installed")
    if done.returncode:
        pytest.skip(f"not a git clone: {done.stderr.strip()}")
    return sorted(name for name in set(done.stdout.split("\0")) - {""} if (ROOT / name).is_file())


@pytest.fixture(scope="module")
def settings():
    if sys.version_info < (3, 11):
        pytest.skip("tomllib comes with Python 3.11")
    import tomllib

    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


@pytest.fixture(scope="module")
def wheel(tracked, tmp_path_factory):
    """The names of the files in a wheel, built from a copy so that nothing is left in the checkout."""
    setuptools = pytest.importorskip("setuptools", "77", reason="building a wheel needs setuptools 77 or later")
    assert setuptools
    copy = tmp_path_factory.mktemp("checkout") / "of_another_name"
    for name in tracked:
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy / name)
    build = "from setuptools.build_meta import build_wheel; print(build_wheel('.'))"
    done = subprocess.run([sys.executable, "-c", build], cwd=copy, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return zipfile.ZipFile(copy / done.stdout.split()[-1]).namelist()


def to_install(tracked):
    """The files that belong into the wheel."""
    paths = [PurePosixPath(name) for name in tracked]
    return {
        str(path)
        for path in paths
        if path.suffix in INSTALLED and path.parts[0] not in ASIDE and not path.parts[0].startswith(".")
    }


def test_the_wheel_holds_the_repositorys_files(tracked, wheel):
    found = {name for name in wheel if ".dist-info/" not in name}
    assert found == {f"sightline/{name}" for name in to_install(tracked)}
    assert {"sightline/py.typed", "sightline/training/recipes/shapes.yaml", "sightline/detectors/nms.py"} <= found


def test_the_wheel_holds_the_licence(wheel):
    assert [name for name in wheel if name.endswith("/LICENSE")]


def test_the_list_of_packages(tracked, settings):
    """Quicker than building the wheel, and says which line is missing."""
    folders = {str(PurePosixPath(name).parent) for name in to_install(tracked)}
    expected = {"sightline" if folder == "." else f"sightline.{folder.replace('/', '.')}" for folder in folders}
    assert set(settings["tool"]["setuptools"]["packages"]) == expected


def test_the_commands_exist(settings):
    for target in settings["project"]["scripts"].values():
        module, function = target.split(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_no_symbolic_links(tracked):
    """Clones on Windows turn them into text files."""
    assert [name for name in tracked if (ROOT / name).is_symlink()] == []


# Folders of somebody's machine; the character before tells a path's beginning from the middle of an address.
MACHINE = re.compile(r"(?<![\w.:/~}])(?:/(?:work|opt|home|root|Users|mnt|scratch|workspace)/[\w.]|[A-Z]:\\\\?Users)")


def test_no_paths_of_somebodys_machine(tracked):
    found = []
    for name in tracked:
        if PurePosixPath(name).suffix in {".py", ".md", ".toml", ".yaml", ".yml", ".txt", ".cfg", ""}:
            lines = (ROOT / name).read_text("utf-8").splitlines()
            found += [f"{name}:{i} {line.strip()}" for i, line in enumerate(lines, 1) if MACHINE.search(line)]
    assert found == []


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("see " + "/".join(["", "home", "ann", "data"]), True),
        ("`" + "/".join(["", "opt", "venv"]) + "`", True),
        ("C:" + "\\Users\\ann", True),
        ("https://example.org/home/page", False),
        ("runs/home/x and ../home/x", False),
        ("and/or, /home", False),
    ],
)
def test_what_a_machines_path_is(line, found):
    assert bool(MACHINE.search(line)) == found
