"""Search for hyperparameters: random values in log space (Bergstra and Bengio 2012, https://jmlr.org/papers/v13/bergstra12a.html),
first over the whole ranges, then closely around the best; or Optuna's tree of Parzen estimators.

A `Space` says what is drawn; a sampler draws a `Trial` (`ask`) and hears what came of it (`tell`).
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from ..datasets.table import DataError

COARSE = 2 / 3  # share of the trials over the whole ranges
FINE = 0.25  # width of the fine round's ranges, as a share of the whole, in log space
BORDER = 0.05  # a best value so close to an end, as a share of the range in log space, lies on its border


@dataclass(frozen=True)
class Range:
    """Positive numbers from `low` to `high`, drawn uniformly in log space.

    Attributes:
        low, high: both ends belong to it.
        whole: draw whole numbers.
    """

    low: float
    high: float
    whole: bool = False

    @staticmethod
    def parse(text: str) -> tuple[str, Range]:
        """An option and its range from "model.optimizer.lr=1e-4:1e-1"; whole numbers where both ends are ("4:64").

        Raises:
            DataError: not of that form, or not 0 < low < high.
        """
        found = re.fullmatch(r"(?:--)?([A-Za-z_][\w.]*)=([^:]+):([^:]+)", text.strip())
        try:
            name, low, high = found[1], float(found[2]), float(found[3])  # type: ignore[index]
        except (TypeError, ValueError):
            raise DataError(f"{text!r} is no range; write one like model.optimizer.lr=1e-4:1e-1") from None
        if not 0 < low < high < math.inf:
            raise DataError(
                f"the range of {name} must have 0 < low < high, as it is searched in log space; got {text!r}"
            )
        whole = found[2].isdecimal() and found[3].isdecimal()
        return name, Range(int(low), int(high), whole=True) if whole else Range(low, high)

    def at(self, place: float) -> float | int:
        """The value at a place from 0 (low) to 1 (high) in log space, of three digits or whole."""
        value = self.low * (self.high / self.low) ** place
        value = round(value) if self.whole else float(f"{value:.3g}")
        return min(max(value, self.low), self.high)

    def place(self, value: float) -> float:
        """Where a value lies: the inverse of `at`."""
        return math.log(value / self.low) / math.log(self.high / self.low)

    def around(self, value: float) -> Range:
        """A narrower range about a value, within this one."""
        place = self.place(value)
        span = self.high / self.low
        low, high = (self.low * span ** min(max(place + shift, 0.0), 1.0) for shift in (-FINE / 2, FINE / 2))
        if self.whole:  # the whole numbers within, whatever rounding made of the ends
            low, high = math.ceil(low - 1e-6), math.floor(high + 1e-6)
        return Range(low, high, self.whole)


Space = dict[str, Range]
# What a run is given where nothing else is asked for.
SPACE: Space = {"model.optimizer.lr": Range(1e-4, 1.0), "model.optimizer.weight_decay": Range(1e-6, 1e-2)}


@dataclass
class Trial:
    """One run.

    Attributes:
        values: option to value.
        round: "coarse", "fine" or "tpe".
        measured: what the run reached; None for one that failed.
        mode: whether "max" or "min" of that is best.
        run: its folder.
    """

    values: dict[str, float | int]
    round: str
    measured: float | None = None
    mode: str = "max"
    run: str = ""

    @property
    def score(self) -> float:
        """What is measured, turned so that higher is better; minus infinity for a run that failed."""
        if self.measured is None:
            return -math.inf
        return self.measured if self.mode == "max" else -self.measured


class Sampler(Protocol):
    """Draws trials, and hears what came of them."""

    def ask(self) -> Trial: ...

    def tell(self, trial: Trial) -> None: ...


class RandomSampler:
    """Two thirds of the trials over the whole ranges, the rest around the best of them.

    Places along each range are drawn evenly spread (one in each of as many equal parts as there are trials in the
    round), in an order of its own for each option: few draws then leave no part of a range unseen.

    Args:
        space: what to draw.
        trials: how many there will be, at least 1.
        seed: of the draws.
    """

    def __init__(self, space: Space, trials: int, seed: int = 0) -> None:
        if trials < 1:
            raise DataError(f"a search needs at least 1 trial, got {trials}")
        self.space, self._rng, self._told = space, np.random.default_rng(seed), []
        coarse = math.ceil(COARSE * trials)
        self._places = [*self._draw(coarse), *self._draw(trials - coarse)]
        self._coarse, self._asked = coarse, 0

    def _draw(self, trials: int) -> list[dict[str, float]]:
        columns = {
            name: (self._rng.permutation(trials) + self._rng.random(trials)) / max(1, trials) for name in self.space
        }
        return [{name: float(column[k]) for name, column in columns.items()} for k in range(trials)]

    def ask(self) -> Trial:
        """The next trial; more may be asked for than were announced."""
        if self._asked == len(self._places):
            self._places += self._draw(1)
        places, fine = self._places[self._asked], self._asked >= self._coarse
        self._asked += 1
        space, centre = self.space, best(self._told) if fine else None
        if centre is not None:
            space = {name: self.space[name].around(value) for name, value in centre.values.items()}
        values = {name: space[name].at(place) for name, place in places.items()}
        return Trial(values, "coarse" if centre is None else "fine")

    def tell(self, trial: Trial) -> None:
        """Notes a trial's score."""
        self._told.append(trial)


class TPESampler:
    """Optuna's tree of Parzen estimators (Bergstra et al. 2011), which draws where past trials did well.

    Args:
        space: what to draw.
        seed: of the draws.

    Raises:
        DataError: Optuna is not installed.
    """

    def __init__(self, space: Space, seed: int = 0) -> None:
        try:
            import optuna
        except ImportError:
            raise DataError('this sampler needs Optuna: pip install "sightline[search]"') from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        distributions = optuna.distributions
        self._failed = optuna.trial.TrialState.FAIL
        self._study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=seed))
        self._space = {
            name: distributions.IntDistribution(int(one.low), int(one.high), log=True)
            if one.whole
            else distributions.FloatDistribution(one.low, one.high, log=True)
            for name, one in space.items()
        }

    def ask(self) -> Trial:
        """The next trial."""
        self._open = self._study.ask(self._space)
        return Trial(dict(self._open.params), "tpe")

    def tell(self, trial: Trial) -> None:
        """Notes the score of the trial asked for last."""
        if trial.measured is None:
            self._study.tell(self._open, state=self._failed)
        else:
            self._study.tell(self._open, trial.score)


def best(trials: Sequence[Trial]) -> Trial | None:
    """The trial with the highest score; None where all failed."""
    return max((t for t in trials if t.measured is not None), key=lambda trial: trial.score, default=None)


def border_warnings(trials: Sequence[Trial], space: Space) -> list[str]:
    """A line for each range on whose border the best trial's value lies: something better may lie beyond."""
    winner, lines = best(trials), []
    for name, value in winner.values.items() if winner else ():
        one, place = space[name], space[name].place(value)
        if BORDER <= place <= 1 - BORDER:
            continue
        span = (one.high / one.low) ** 0.5
        low, high = (one.low, one.high * span) if place > 0.5 else (one.low / span, one.high)
        if one.whole:
            low, high = max(1, round(low)), round(high)
            if (low, high) == (one.low, one.high):  # from 1 there is no way down
                continue
        end = "upper" if place > 0.5 else "lower"
        lines.append(
            f"the best {name}, {_text(value)}, lies on the {end} border of its range {_text(one.low)}:{_text(one.high)}: "
            f"something better may lie beyond; go on with --search.range {name}={_text(low, 1)}:{_text(high, 1)}"
        )
    return lines


def _text(value: float | int, digits: int = 3) -> str:
    """A whole number with all its digits, another with some."""
    return str(value) if isinstance(value, int) else f"{value:.{digits}g}"


def format_table(trials: Sequence[Trial], measure: str) -> str:
    """The trials, best first, as lines of text; failed ones last.

    Args:
        trials: at least one.
        measure: what the score is.
    """
    names = list(trials[0].values)
    widths = [max(10, len(name)) for name in names]
    titles = "".join(f"{name:>{width}}  " for name, width in zip(names, widths, strict=True))
    lines = [f"{measure:>10}  {titles}round   run"]
    for trial in sorted(trials, key=lambda trial: trial.score, reverse=True):
        score = f"{'failed':>10}" if trial.measured is None else f"{trial.measured:10.4f}"
        values = "".join(f"{_text(trial.values[name]):>{width}}  " for name, width in zip(names, widths, strict=True))
        lines.append(f"{score}  {values}{trial.round:<6}  {trial.run}")
    return "\n".join(lines)


def write_csv(trials: Sequence[Trial], measure: str, path: Path) -> None:
    """The trials in the order they ran: what was measured (empty where a run failed), values, round and folder."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([measure, *trials[0].values, "round", "run"])
        for trial in trials:
            measured = "" if trial.measured is None else trial.measured
            writer.writerow([measured, *trial.values.values(), trial.round, trial.run])
