"""`sightline train RECIPE --search N`: runs with other values of some options, and a table of what they reached.

sightline train lenet --data mnist/ --search 12 --trainer.max_epochs 2
sightline train lenet --search 12 --search.range model.optimizer.lr=1e-3:1 --search.range data.batch_size=8:128
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from sightline.datasets.table import DataError
from sightline.training.run_folder import RunFolder
from sightline.training.search import (
    SPACE,
    RandomSampler,
    Range,
    Sampler,
    Space,
    TPESampler,
    Trial,
    best,
    border_warnings,
    format_table,
    write_csv,
)

SAMPLERS = ("random", "tpe")


@dataclass(frozen=True)
class Plan:
    """What the command asks for.

    Attributes:
        trials: how many runs.
        space: what is drawn.
        sampler: "random" or "tpe".
        seed: of the draws; another gives other values.
    """

    trials: int
    space: Space
    sampler: str
    seed: int

    def make_sampler(self) -> Sampler:
        """The sampler of that name."""
        if self.sampler == "tpe":
            return TPESampler(self.space, self.seed)
        return RandomSampler(self.space, self.trials, self.seed)


class Outcome(NamedTuple):
    """What one run reached: the measure's name, whether its "max" or "min" is best, its value (None: failed), the folder."""

    measure: str
    mode: str
    value: float | None
    run: str


# (options, what makes the search's folder when it is first needed) to what the run reached.
RunTrial = Callable[[list[str], Callable[[], Path]], Outcome]


def take_plan(argv: list[str]) -> Plan | None:
    """The search that the options ask for, taken out of them; None where they ask for none.

    Raises:
        DataError: a number, range or sampler that is none.
    """
    given: dict[str, list[str]] = {"": [], "range": [], "sampler": [], "seed": []}
    rest: list[str] = []
    words = iter(argv)
    for word in words:
        option, equals, value = word.partition("=")
        name = option.removeprefix("--search").removeprefix(".")
        if not option.startswith("--search") or name not in given:
            rest.append(word)
            continue
        value = value if equals else next(words, "")
        given[name].append(value)
    argv[:] = rest
    if not any(given.values()):
        return None
    if not given[""]:
        raise DataError("name the number of runs too: --search 12")
    ranges = dict(Range.parse(text) for text in given["range"])
    sampler = given["sampler"][-1] if given["sampler"] else SAMPLERS[0]
    if sampler not in SAMPLERS:
        raise DataError(f"no sampler {sampler!r}; there are {', '.join(SAMPLERS)}")
    seed = _number((given["seed"] or ["0"])[-1], "--search.seed")
    return Plan(_number(given[""][-1], "--search"), ranges or SPACE, sampler, seed)


def _number(text: str, option: str) -> int:
    if not text.isdecimal():
        raise DataError(f"{option} needs a whole number, e.g. {option} 12, got {text!r}")
    return int(text)


def search(plan: Plan, root: str, recipe: str, run: RunTrial) -> int:
    """Runs the trials, each in an ordinary run folder, then prints and writes what came of them.

    Args:
        plan: what to search.
        root: where run folders are made; the search's are root/<recipe>_search/<n>/<trial>.
        recipe: its name.
        run: trains once.

    Returns:
        The exit code: 1 where every run failed.
    """

    @functools.cache
    def folder() -> Path:
        return RunFolder.new(root, f"{recipe}_search").path

    sampler, trials, measure = plan.make_sampler(), [], ""
    try:
        for k in range(plan.trials):
            trial = sampler.ask()
            options = [f"--{name}={value!r}" for name, value in trial.values.items()]
            print(f"\nrun {k + 1} of {plan.trials} ({trial.round}): {' '.join(options)}", flush=True)
            measure, trial.mode, trial.measured, trial.run = run(options, folder)
            sampler.tell(trial)
            trials.append(trial)
    finally:  # an interrupted search shows what it has found
        if trials:
            _report(trials, measure, plan.space, folder() / "results.csv")
    return 0 if best(trials) else 1


def _report(trials: list[Trial], measure: str, space: Space, path: Path) -> None:
    write_csv(trials, measure, path)
    print(f"\n{format_table(trials, measure)}\n")
    for line in border_warnings(trials, space):
        print(f"warning: {line}")
    print(f"see {path}")
