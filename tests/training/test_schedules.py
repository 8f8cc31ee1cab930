"""Learning rate schedules against values worked out by hand."""

import pytest

from sightline.training import (
    CosineDecay,
    ExponentialDecay,
    InverseTimeDecay,
    PolynomialDecay,
    Schedule,
    StepDecay,
)

VALUES = {
    "constant": (Schedule(), {0: 1.0, 500: 1.0, 999: 1.0}),
    "warm-up": (Schedule(warmup_steps=10), {0: 0.1, 4: 0.5, 9: 1.0, 500: 1.0}),
    "step": (StepDecay(milestones=(0.5, 0.75), gamma=0.1), {0: 1.0, 499: 1.0, 500: 0.1, 749: 0.1, 750: 0.01}),
    "exponential": (ExponentialDecay(final=0.01), {0: 1.0, 500: 0.1, 1000: 0.01}),
    "1/t": (InverseTimeDecay(k=3.0), {0: 1.0, 500: 0.4, 1000: 0.25}),
    "polynomial": (PolynomialDecay(power=2), {0: 1.0, 500: 0.25, 1000: 0.0}),
    "cosine": (CosineDecay(), {0: 1.0, 500: 0.5, 1000: 0.0}),
    "cosine, then flat": (CosineDecay(final=0.1, flat=0.2), {0: 1.0, 400: 0.55, 800: 0.1, 999: 0.1}),
    "cosine to a floor, warmed up": (CosineDecay(final=0.2, warmup_steps=100), {0: 0.01, 500: 0.6, 1000: 0.2}),
}


@pytest.mark.parametrize(("schedule", "values"), VALUES.values(), ids=VALUES.keys())
def test_factor(schedule, values):
    for step, expected in values.items():
        assert schedule.factor(step, 1000) == pytest.approx(expected, rel=1e-4, abs=1e-12)


def test_warm_up_is_a_tenth_of_a_short_run_at_most():
    assert [Schedule(warmup_steps=500).factor(step, 40) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_milestones_are_shares():
    with pytest.raises(ValueError, match=r"shares of the run.*\(8, 11\)"):
        StepDecay(milestones=(8, 11))
