"""Every `sightline …` of README and docs can be typed: its command, options and words exist. Nothing is run."""

import argparse
import re
import shlex
from pathlib import Path

import pytest

from sightline.tools import main as front
from sightline.tools.train_cli import TrainCLI

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


class Parsed(Exception):
    """Ends a command where it would begin to work."""


def documented(page: Path) -> list[str]:
    """The commands of a page with the shell's variables filled in, those for trainings within sentences too.

    Other commands in a sentence are often not whole, as `sightline predict --compile`.
    """
    text = re.sub(r"^```.*?^```", "", page.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
    block = "\n".join(line.strip() for line in text.splitlines() if line.startswith("    "))
    block = block.replace("\\\n", " ")
    for name, value in re.findall(r'^([A-Z]+)="(.*)"$', block, flags=re.MULTILINE):
        block = block.replace(f"${name}", value)
    block = block.replace("$(which sightline)", "sightline")
    sentences = [" ".join(code.split()) for code in re.findall(r"`(sightline train [^`[…]+)`", text)]
    lines = [line.partition("sightline ")[2] for line in [*block.splitlines(), *sentences] if RUNS.match(line)]
    return [re.sub(r"\[options\]|\bCOMMON\b", "", line).strip() for line in lines]


RUNS = re.compile(r"(\w+=\S+ |pip install .*&& |srun |torchrun .*)?sightline ")


def words_of(command: str) -> list[str]:
    """What the shell would hand over; a run that goes on takes the options of its recipe."""
    words = shlex.split(command, comments=True)
    words = ["shapes" if word == "RECIPE" else word for word in words if word != "--list"]
    if "--resume" in words:
        place = words.index("--resume")
        words[place : place + 2] = [words[place + 1].split("/")[1]]
    return words


COMMANDS = sorted({(page.name, command) for page in PAGES for command in documented(page)})


@pytest.fixture(scope="module")
def parsers():
    """Of `sightline train`, one for each kind of model: building one takes longer than all else."""
    return {}


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_it_is_understood(page, command, parsers, monkeypatch, tmp_path):
    parse, set_up = argparse.ArgumentParser.parse_args, TrainCLI.setup_parser

    def parse_only(self, *arguments, **options):
        parse(self, *arguments, **options)
        raise Parsed

    def keep(self, *arguments):
        if type(self) not in parsers:
            set_up(self, *arguments)
            parsers[type(self)] = self.parser
        self.parser = parsers[type(self)]

    def stop(self):
        raise Parsed

    tool, *words = words_of(command)
    assert tool in front.TOOLS
    if tool != "train":
        monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_only)
    monkeypatch.setattr(TrainCLI, "setup_parser", keep)
    monkeypatch.setattr(TrainCLI, "before_instantiate_classes", stop)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((Parsed, SystemExit)) as end:
        assert front.run(tool, words) == 0  # where an option is refused
    assert getattr(end.value, "code", 0) == 0
