"""How the learning rate changes over a run: factors between 0 and 1 of the rate the optimiser was given."""

from __future__ import annotations

import math
from collections.abc import Sequence


class Schedule:
    """A constant rate after a linear warm-up, and the base of the others.

    Args:
        warmup_steps: optimiser steps over which the rate rises from near zero; of a short run at most a tenth.
    """

    def __init__(self, warmup_steps: int = 0) -> None:
        self.warmup_steps = warmup_steps

    def factor(self, step: int, total: int) -> float:
        """What the rate is multiplied with.

        Args:
            step: optimiser steps taken so far, from 0.
            total: optimiser steps of the whole run.
        """
        warmup_steps = min(self.warmup_steps, total // 10)
        return min(1.0, (step + 1) / max(1, warmup_steps)) * self.decay(step, total)

    def decay(self, step: int, total: int) -> float:
        """The factor without the warm-up."""
        return 1.0


class StepDecay(Schedule):
    """The rate drops by a factor at given shares of the run.

    Args:
        milestones: shares of the run, in (0, 1), at which the rate drops.
        gamma: the factor of each drop.
        warmup_steps: see `Schedule`.
    """

    def __init__(self, milestones: Sequence[float] = (0.67, 0.89), gamma: float = 0.1, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)
        if not all(0 < milestone < 1 for milestone in milestones):
            raise ValueError(f"milestones are shares of the run between 0 and 1, got {tuple(milestones)}")
        self.milestones, self.gamma = tuple(milestones), gamma

    def decay(self, step: int, total: int) -> float:
        return self.gamma ** sum(step >= milestone * total for milestone in self.milestones)


class ExponentialDecay(Schedule):
    """The rate falls by the same factor in equal times.

    Args:
        final: the factor at the end of the run.
        warmup_steps: see `Schedule`.
    """

    def __init__(self, final: float = 0.01, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)
        self.final = final

    def decay(self, step: int, total: int) -> float:
        return self.final ** (step / max(1, total))


class InverseTimeDecay(Schedule):
    """The rate falls as 1 / (1 + k t).

    Args:
        k: the fall; at the end of the run, where t is 1, the factor is 1 / (1 + k).
        warmup_steps: see `Schedule`.
    """

    def __init__(self, k: float = 10.0, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)
        self.k = k

    def decay(self, step: int, total: int) -> float:
        return 1 / (1 + self.k * step / max(1, total))


class CosineDecay(Schedule):
    """The rate falls along half a cosine (Loshchilov and Hutter 2017, https://arxiv.org/abs/1608.03983, eq. 5).

    Args:
        final: the factor at the end of the run.
        warmup_steps: see `Schedule`.
        flat: share of the run, its last, that stays at `final`.
    """

    def __init__(self, final: float = 0.0, warmup_steps: int = 0, flat: float = 0.0) -> None:
        super().__init__(warmup_steps)
        if not 0 <= flat < 1:
            raise ValueError(f"flat is a share of the run in [0, 1), got {flat}")
        self.final, self.flat = final, flat

    def decay(self, step: int, total: int) -> float:
        falling = max(1.0, total * (1 - self.flat))
        return self.final + (1 - self.final) * 0.5 * (1 + math.cos(math.pi * min(1.0, step / falling)))


class PolynomialDecay(Schedule):
    """The rate falls as (1 - t) to a power, t from 0 to 1: what networks for label maps are mostly trained with (DeepLab,
    Chen et al. 2017, https://arxiv.org/abs/1606.00915, section 4.1).

    Args:
        power: 1 for a straight line.
        warmup_steps: see `Schedule`.
    """

    def __init__(self, power: float = 0.9, warmup_steps: int = 0) -> None:
        super().__init__(warmup_steps)
        self.power = power

    def decay(self, step: int, total: int) -> float:
        return max(0.0, 1 - step / max(1, total)) ** self.power
