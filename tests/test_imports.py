"""Who may import whom: the rooms of the house, held against every import in the code, those inside functions too."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# What flows between rooms: samples, batches and objects, proposals, annotation tables, and the error of bad data.
TYPES = {"datasets.structures", "datasets.table", "datasets.proposals"}
# Masks as columns, and what makes them of polygons, strings and compact ones: truth and predictions alike are scored by them.
MASKS = {"datasets.run_lengths", "datasets.mask_encoding"}
LIBRARY = {
    "backbone": set(),
    "datasets": set(),
    "detectors": {"backbone", *TYPES},
    "segmentation": {"backbone", "detectors", *TYPES},
    "captioning": {"backbone", *TYPES},
    "evaluation": {*TYPES, *MASKS},
    "training": {"backbone", "datasets", "detectors", "segmentation", "captioning", "evaluation"},
}
# Nothing of the library imports these, and they name what they import in full.
USERS = ("tools", "tests", "benchmarks")
# A file, what else it may import, and why.
EXCEPTIONS = {
    # `Detector.predict` takes files and video: reading and batching them is the data room's, and is loaded on that call.
    "detectors/inference.py": {"datasets.batching", "datasets.sources", "datasets.transforms"},
    # Where boxes of several answers become one box, their masks, compact within each, are brought into it.
    "detectors/ensemble.py": {"datasets.masks"},
    "detectors/tile_merging.py": {"datasets.masks"},
    # And so for `Captioner.predict` and `Segmenter.predict`.
    "captioning/inference.py": {"datasets.batching", "datasets.sources", "datasets.transforms"},
    "segmentation/inference.py": {"datasets.batching", "datasets.sources", "datasets.transforms"},
}
OUTSIDE = "outside"


def violations(files):
    """What is wrong with the imports of files, given as path within the repository: source."""
    wrong = []
    for path, source in files.items():
        for line, target, relative in imports(path, source):
            if problem := judge(path, target, relative):
                wrong.append(f"{path}:{line} {problem}")
    return wrong


def imports(path, source):
    """Every import of ours as (line, target, whether it is relative), e.g. (3, "backbone.fpn.FPN", True)."""
    folder = Path(path).parent.parts
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found = [(alias.name, False) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            above = node.level - 1
            base = ["sightline", *folder[: len(folder) - above]] if node.level else []
            if above > len(folder):
                base = [OUTSIDE]
            module = [*base, *((node.module or "").split(".") if node.module else [])]
            found = [(".".join([*module, alias.name]), node.level > 0) for alias in node.names]
        else:
            continue
        for name, relative in found:
            first, _, rest = name.partition(".")
            if first == "sightline" or first in (*LIBRARY, *USERS, OUTSIDE):
                yield node.lineno, rest if first == "sightline" else f"!{name}", relative


def judge(path, target, relative):
    """What is wrong with one import, or None."""
    room = Path(path).parts[0] if "/" in path else ""
    if target.startswith(f"!{OUTSIDE}"):
        return "reaches outside the repository: one dot too many"
    if target.startswith("!"):
        return f"imports {target[1:]}, which only resolves by accident: it is sightline.{target[1:]}"
    if room in USERS:
        return "imports relatively; here it is `from sightline.…`" if relative else None
    if not relative:
        return f"imports sightline.{target} in full; inside the library imports are relative"
    if target.split(".")[0] == room:
        return None
    allowed = LIBRARY.get(room, set()) | EXCEPTIONS.get(path, set())
    if any(target == name or target.startswith(f"{name}.") for name in allowed):
        return None
    return f"imports {target}; {room or 'the root'} may import {', '.join(sorted(allowed)) or 'nothing of ours'}"


def python_files():
    """All of ours, as the checker takes them."""
    paths = [*ROOT.glob("*.py")]
    paths += [path for room in (*LIBRARY, *USERS) for path in (ROOT / room).rglob("*.py")]
    return {path.relative_to(ROOT).as_posix(): path.read_text("utf-8") for path in paths}


def test_every_import_is_allowed():
    files = python_files()
    assert len(files) > 100
    assert violations(files) == []


def test_no_circle_of_rooms():
    """Neither in the table nor, exceptions included, in the code."""
    table = {room: {name.split(".")[0] for name in allowed} for room, allowed in LIBRARY.items()}
    code = {}
    for path, source in python_files().items():
        room = path.split("/")[0]
        targets = {target.split(".")[0] for _, target, _ in imports(path, source)}
        if room in LIBRARY:
            code.setdefault(room, set()).update(targets & set(LIBRARY) - {room})
    assert code["training"] >= {"datasets", "detectors", "evaluation"}
    for graph in (table, code):
        list(TopologicalSorter(graph).static_order())  # CycleError names the circle


def test_exceptions_are_needed():
    files = python_files()
    for path, extra in EXCEPTIONS.items():
        used = {target for _, target, _ in imports(path, files[path])}
        assert all(any(target.startswith(f"{name}.") for target in used) for name in extra)


def test_every_folder_of_code_has_its_row():
    folders = {path.parent.name for path in ROOT.glob("*/*.py") if not path.parent.name.startswith(".")}
    assert folders - {"build", "dist", "venv", "env"} <= {*LIBRARY, *USERS}


def test_names_that_others_bear_are_no_packages():
    """With the checkout on `sys.path`, an installed Hugging Face `datasets` then wins over our folder."""
    for folder in ("datasets", "tests", "tests/datasets"):
        assert (ROOT / folder).is_dir()
        assert not (ROOT / folder / "__init__.py").exists()


# name: file, its source, what is said of it (None: nothing)
PLANTED = {
    "own room": ("backbone/a.py", "from .fpn import FPN", None),
    "own room by name": ("backbone/a.py", "from . import fpn", None),
    "below": ("detectors/a.py", "from ..backbone.fpn import FPN", None),
    "a room as a whole": ("detectors/a.py", "from .. import backbone", None),
    "a type": ("evaluation/a.py", "from ..datasets.structures import Instances", None),
    "a module of types": ("evaluation/a.py", "from ..datasets import structures", None),
    "others' packages": ("backbone/a.py", "import torch.nn\nfrom torchvision import datasets", None),
    "a deeper folder": ("training/recipes/a.py", "from ...datasets.coco import x", None),
    "a tool": ("tools/a.py", "import sightline.training\nfrom sightline import backbone", None),
    "above": ("backbone/a.py", "from ..detectors.nms import nms", "a.py:1 imports detectors.nms.nms"),
    "beside": ("evaluation/a.py", "from ..backbone import FPN", "may import datasets.mask_encoding, datasets.prop"),
    "not a type": ("detectors/a.py", "from ..datasets.coco import CocoFolder", "imports datasets.coco"),
    "a room of types as a whole": ("detectors/a.py", "from .. import datasets", "imports datasets"),
    "a name that begins alike": ("detectors/a.py", "from ..datasets.tables import x", "imports datasets.tables"),
    "inside a function": ("datasets/a.py", "def f():\n    from ..training import x", "a.py:2 imports training.x"),
    "for types only": ("datasets/a.py", "if TYPE_CHECKING:\n    from ..backbone import x", "imports backbone.x"),
    "in full": ("detectors/a.py", "from sightline.backbone import FPN", "in full"),
    "in full, plainly": ("detectors/a.py", "import sightline.backbone.fpn as f", "in full"),
    "a tool from the library": ("training/a.py", "from ..tools.train import main", "imports tools.train.main"),
    "a tool relatively": ("tools/a.py", "from .train import main", "imports relatively"),
    "a test relatively": ("tests/detectors/a.py", "from ..conftest import ROOT", "imports relatively"),
    "by accident": ("tests/a.py", "from backbone import FPN", "by accident"),
    "by accident, plainly": ("tools/a.py", "import datasets", "by accident"),
    "too far up": ("backbone/a.py", "from ...datasets import x", "reaches outside"),
    "the root": ("__init__.py", "from .backbone import FPN", "the root may import nothing of ours"),
    "exceptions are of one file": (
        "detectors/a.py",
        "from ..datasets.sources import frames",
        "imports datasets.sources",
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_the_checker_itself(name):
    path, source, expected = PLANTED[name]
    found = violations({path: source})
    if expected is None:
        assert found == []
    else:
        assert len(found) == 1
        assert expected in found[0]
