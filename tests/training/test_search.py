"""Ranges, samplers and what a search says at its end."""

import csv
import math

import pytest

from sightline.datasets.table import DataError
from sightline.training.search import (
    RandomSampler,
    Range,
    TPESampler,
    Trial,
    best,
    border_warnings,
    format_table,
    write_csv,
)

SPACE = {"lr": Range(1e-4, 1.0), "wd": Range(1e-6, 1e-2)}


def run(sampler, trials, score):
    """All trials of a search for the largest score."""
    done = []
    for _ in range(trials):
        trial = sampler.ask()
        trial.measured = score(trial.values)
        sampler.tell(trial)
        done.append(trial)
    return done


def near(values):
    """Best at lr = 0.01."""
    return -abs(math.log10(values["lr"]) + 2)


def test_ranges_are_read():
    assert Range.parse("model.optimizer.lr=1e-4:1e-1") == ("model.optimizer.lr", Range(1e-4, 0.1))
    assert Range.parse("--data.batch_size=4:64") == ("data.batch_size", Range(4, 64, whole=True))
    assert Range.parse("a=1:8.0")[1].whole is False


@pytest.mark.parametrize(
    "text", ["lr", "lr=1e-3", "lr=0:1", "lr=-1:1", "lr=1:0.1", "lr=1:1", "lr=a:b", "=1:2", "lr=1:inf", "lr=nan:1"]
)
def test_ranges_that_are_none(text):
    with pytest.raises(DataError, match="range"):
        Range.parse(text)


@pytest.mark.parametrize("one", [Range(1e-4, 1.0), Range(0.3, 0.5), Range(2, 64, whole=True)])
def test_places_are_the_inverse_of_values(one):
    values = [one.at(k / 50) for k in range(51)]
    assert values == sorted(values)
    assert values[0] == one.low
    assert values[-1] == one.high
    assert all(
        one.place(value) == pytest.approx(k / 50, abs=0.16 if one.whole else 0.01) for k, value in enumerate(values)
    )
    assert all(type(value) is (int if one.whole else float) for value in values[1:-1])


def test_coarse_round_is_spread_evenly_in_log_space():
    trials = run(RandomSampler(SPACE, 15), 10, near)
    assert {trial.round for trial in trials} == {"coarse"}
    for name, one in SPACE.items():
        assert sorted(int(10 * one.place(trial.values[name])) for trial in trials) == list(range(10))


def test_fine_round_is_close_to_the_best():
    trials = run(RandomSampler(SPACE, 12), 12, near)
    coarse, fine = trials[:8], trials[8:]
    assert [trial.round for trial in fine] == ["fine"] * 4
    leader, one = best(coarse), SPACE["lr"]
    distance = [abs(one.place(trial.values["lr"]) - one.place(leader.values["lr"])) for trial in fine]
    assert max(distance) <= 0.125 + 0.05  # and the best moves with what the fine round finds
    assert best(trials).score >= leader.score


def test_no_fine_round_about_nothing():
    trials = run(RandomSampler(SPACE, 6), 6, lambda values: None)
    assert {trial.round for trial in trials} == {"coarse"}
    assert best(trials) is None
    assert border_warnings(trials, SPACE) == []


def test_draws_follow_from_the_seed():
    draw = [[trial.values for trial in run(RandomSampler(SPACE, 6, seed), 6, near)] for seed in (0, 0, 1)]
    assert draw[0] == draw[1] != draw[2]


def test_values_stay_within_their_ranges():
    space = {"lr": Range(1e-3, 2e-3), "n": Range(3, 5, whole=True)}
    for trial in run(RandomSampler(space, 40), 40, lambda values: -values["lr"]):
        assert 1e-3 <= trial.values["lr"] <= 2e-3
        assert trial.values["n"] in (3, 4, 5)
        assert type(trial.values["n"]) is int


@pytest.mark.parametrize("value", [4, 5, 8, 17, 50, 64])
def test_fine_values_of_a_whole_range_are_whole(value):
    """Within the range about the best there lie whole numbers only, the best among them, and never one outside."""
    one = Range(4, 64, whole=True)
    near = one.around(value)
    values = {near.at(k / 50) for k in range(51)}
    assert all(type(drawn) is int for drawn in values)
    inside = [n for n in range(4, 65) if abs(math.log(n / value)) <= math.log(16) / 8 + 1e-9]
    assert values == set(inside)


def test_lowest_is_best_where_errors_are_measured():
    trials = [Trial({"lr": 1.0}, "coarse", error, "min") for error in (0.5, 0.2, None)]
    assert best(trials) is trials[1]
    assert [trial.score for trial in trials] == [-0.5, -0.2, -math.inf]


@pytest.mark.parametrize(
    ("lr", "expected"),
    [(0.9, r"best lr, 0\.9, lies on the upper border of its range 0\.0001:1.*lr=0\.0001:1e\+02"),
     (1.2e-4, r"lower border.*lr=1e-06:1"), (0.01, None)],
)  # fmt: skip
def test_warns_of_a_best_value_on_the_border(lr, expected):
    trials = [Trial({"lr": lr}, "coarse", 0.9), Trial({"lr": 0.001}, "coarse", 0.1)]
    lines = border_warnings(trials, SPACE)
    if expected is None:
        assert lines == []
    else:
        (line,) = lines
        assert __import__("re").search(expected, line), line


def test_whole_suggestions_are_whole():
    """They are read again as whole numbers."""
    space = {"n": Range(8, 128, whole=True)}
    for value, expected in ((128, "n=8:512"), (8, "n=2:128")):
        (line,) = border_warnings([Trial({"n": value}, "coarse", 0.9)], space)
        assert line.endswith(expected)
        assert Range.parse(line.rpartition(" ")[2])[1].whole
    assert border_warnings([Trial({"n": 1}, "coarse", 0.9)], {"n": Range(1, 9, whole=True)}) == []
    assert " 1234 " in format_table([Trial({"n": 1234}, "coarse", 0.9)], "AP")


def test_table_and_csv(tmp_path):
    trials = [
        Trial({"lr": 0.1, "wd": 1e-4}, "coarse", None, "max", "runs/x/1"),
        Trial({"lr": 0.01, "wd": 1e-3}, "coarse", 0.25, "max", "runs/x/2"),
        Trial({"lr": 0.02, "wd": 2e-3}, "fine", 0.75, "max", "runs/x/3"),
    ]
    lines = format_table(trials, "AP").splitlines()
    assert [line.split()[-1] for line in lines] == ["run", "runs/x/3", "runs/x/2", "runs/x/1"]
    assert "failed" in lines[-1]
    write_csv(trials, "AP", tmp_path / "results.csv")
    with (tmp_path / "results.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["AP"] for row in rows] == ["", "0.25", "0.75"]
    assert rows[2] == {"AP": "0.75", "lr": "0.02", "wd": "0.002", "round": "fine", "run": "runs/x/3"}


def test_tpe_draws_where_past_trials_did_well():
    pytest.importorskip("optuna")
    space = {"lr": Range(1e-4, 1.0), "n": Range(2, 64, whole=True)}
    trials = run(TPESampler(space), 40, lambda values: None if values["n"] > 60 else near(values))
    assert all(1e-4 <= trial.values["lr"] <= 1 and isinstance(trial.values["n"], int) for trial in trials)
    early, late = ([abs(math.log10(t.values["lr"]) + 2) for t in part] for part in (trials[:10], trials[-10:]))
    assert sum(late) < sum(early)
