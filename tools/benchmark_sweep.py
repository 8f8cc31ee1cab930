"""Cost against work: one number of a setting takes many values, and time and memory are followed."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sightline.tools.benchmark_measure import Measured, measure, write_json
from sightline.tools.benchmark_plots import Curve, plot_sweep
from sightline.tools.benchmark_work import Setting
from sightline.tools.timing import aligned, number

LINEAR = 1.1  # the largest exponent that still counts as growing with the work: times are not exact


class Axis(NamedTuple):
    """What takes many values.

    Attributes:
        name: for people.
        grid: the values, unless others are asked for.
        at: a setting with another value.
        work: how much work a value stands for.
        works: what is measured.
        least: the smallest value.
    """

    name: str
    grid: tuple[int, ...]
    at: Callable[[Setting, int], Setting]
    work: Callable[[int], int] = lambda value: value
    works: tuple[str, ...] = ("inference", "training")
    least: int = 1


AXES = {
    "batch": Axis("pictures of a batch", (1, 2, 4, 8, 16, 32, 64), lambda s, value: replace(s, batch=value)),
    "size": Axis(
        "side of the pictures, in pixels",
        (320, 448, 640, 896, 1280, 1600),
        lambda s, value: replace(s, size=(value, value)),
        work=lambda value: value * value,
    ),
    # What is found does not depend on what could be learnt.
    "objects": Axis(
        "objects of a picture",
        (0, 1, 4, 16, 64, 256, 1024, 5000),
        lambda s, value: replace(s, objects=value),
        works=("training",),
        least=0,
    ),
    "classes": Axis("classes", (1, 4, 16, 64, 256, 1200), lambda s, value: replace(s, classes=value)),
}


@dataclass
class Growth:
    """How one cost of one model's work grows.

    Attributes:
        exponent: cost ~ work ** exponent over the upper half of the grid; None of fewer than two points.
        first, last: values between which it was fitted.
    """

    model: str
    work: str
    cost: str
    exponent: float | None
    first: int
    last: int


def sweep(
    specs: Sequence[str], axis: Axis, values: Sequence[int], setting: Setting, repeats: int
) -> Iterator[list[tuple[int, Measured]]]:
    """Every model's work at every value, ascending, as soon as it is measured; without what the memory does not hold."""
    for value in sorted(set(values)):
        for work in axis.works:
            yield [(value, row) for row in measure(specs, work, axis.at(setting, value), repeats)]


def curves(points: Sequence[tuple[int, Measured]]) -> dict[tuple[str, str], list[tuple[int, Measured]]]:
    """Points by model and work."""
    found: dict[tuple[str, str], list[tuple[int, Measured]]] = {}
    for value, row in points:
        found.setdefault((row.model, row.work), []).append((value, row))
    return found


def growths(axis: Axis, points: Sequence[tuple[int, Measured]]) -> list[Growth]:
    """The exponents of time and of memory, for each model's work."""
    found = []
    for (model, work), rows in curves(points).items():
        for cost, of in (("time", lambda row: row.ms), ("memory", lambda row: row.memory)):
            known = [(value, of(row)) for value, row in rows if of(row) is not None and value > 0]
            upper = known[-max(2, math.ceil(len(known) / 2)) :]
            if upper:
                fitted = exponent([axis.work(value) for value, _ in upper], [cost for _, cost in upper])
                found.append(Growth(model, work, cost, fitted, upper[0][0], upper[-1][0]))
    return found


def exponent(work: Sequence[float], cost: Sequence[float]) -> float | None:
    """The power p of the fit cost ~ work ** p, by least squares of the logarithms; None of fewer than two amounts of work."""
    if len(set(work)) < 2 or min(cost) <= 0:
        return None
    return float(np.polyfit(np.log(work), np.log(cost), 1)[0])


# -- What is shown --


def points_table(name: str, points: Sequence[tuple[int, Measured]]) -> str:
    """A line for each point."""
    lines = [["model", "work", name, "ms", "floor ms", "x floor", "MiB"]]
    for value, row in points:
        numbers = [number(row.ms, 1), number(row.floor_ms, 1), number(row.to_floor, 2), number(row.memory, 0)]
        lines.append([row.model, row.work, str(value), *numbers])
    return aligned(lines, left=2)


def growth_table(name: str, found: Sequence[Growth]) -> str:
    """A line for each exponent; those that are more than linear are named at the end."""
    what = "pixels" if name == "size" else name
    lines = [["model", "work", "cost", "fitted over", f"exponent of {what}"]]
    for one in found:
        lines.append([one.model, one.work, one.cost, f"{one.first} to {one.last}", number(one.exponent, 2)])
    fast = [one for one in found if one.exponent is not None and one.exponent > LINEAR]
    told = "; ".join(f"{one.cost} of {one.work} of {one.model} ({one.exponent:.2f})" for one in fast)
    return f"{aligned(lines, left=3)}\nfaster than linearly with the {what} grows: {told or 'nothing'}"


def report(name: str, points: Sequence[tuple[int, Measured]]) -> str:
    """Both tables of a sweep."""
    return f"{points_table(name, points)}\n\n{growth_table(name, growths(AXES[name], points))}"


def write(name: str, points: Sequence[tuple[int, Measured]], folder: Path) -> None:
    """A sweep, or what there is of it so far, as NAME.png and NAME.json of a folder."""
    axis, found = AXES[name], curves(points)
    drawn = [Curve(model, work, *_columns(rows)) for (model, work), rows in found.items()]
    plot_sweep(drawn, folder / f"{name}.png", name=axis.name, work=axis.work)
    content = {"points": records(name, points), "growth": [vars(one) for one in growths(axis, points)]}
    write_json(folder / f"{name}.json", content)


def records(name: str, points: Sequence[tuple[int, Measured]]) -> list[dict]:
    """Points for JSON."""
    return [row.record() | {"sweep": name, "value": value} for value, row in points]


def _columns(rows: Sequence[tuple[int, Measured]]) -> tuple[list[int], list[float], list[float | None]]:
    return [value for value, _ in rows], [row.ms for _, row in rows], [row.memory for _, row in rows]
