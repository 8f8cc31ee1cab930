"""Support vector machines on more negatives than fit into memory: hard negative mining, exact.

Paper: R-CNN (https://arxiv.org/abs/1311.2524, section 2.3), after Felzenszwalb et al. 2010. An example beyond the margin adds
nothing to the loss. So the machine of a few negatives is that of all of them as soon as every other one lies beyond its
margin, and mining adds the hardest of those that do not until there are none. Each round's least loss is larger than
the one before, hence there is an end. Losses are `linear.fit_svms`': squared hinge, where the paper has the plain one.

Letters: N examples in I blocks, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .linear import LinearModel, fit_svms

EASY = -1.2  # negatives of a lower score are let go; the margin is at -1
FIRST = 2000  # negatives a class to begin with
MOST = 8192  # negatives that a class takes on in a round


@dataclass
class Mined:
    """What mining found.

    Attributes:
        model: C machines.
        positives: (C,) int64, examples of the class.
        negatives: (C,) int64, examples that are not, all of which were looked at in the last round.
        rounds: for each round (C,) int64, how many hard negatives were new; the last one's are all 0.
        support: (C,) int64, negatives within the margin at the end.
    """

    model: LinearModel
    positives: np.ndarray
    negatives: np.ndarray
    rounds: list[np.ndarray] = field(default_factory=list)
    support: np.ndarray | None = None


def mine_svms(
    features: np.ndarray,
    offsets: np.ndarray,
    signs: Callable[[int], np.ndarray],
    num_classes: int,
    *,
    c: float = 1.0,
    scale: float = 1.0,
    positive_weight: float = 1.0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> Mined:
    """One machine a class: `fit_svms` of all examples, of which only the hard ones are ever held in memory.

    Args:
        features: (N, D), perhaps mapped from the disk.
        offsets: (I + 1,): block i is rows offsets[i] to offsets[i + 1], read together.
        signs: block i's (rows, C): 1 where an example is of the class, -1 where it is not, 0 where the class ignores it.
        num_classes: C.
        c: see `fit_svms`.
        scale: features are multiplied with it first; the machines are for features as they were.
        positive_weight: how many times a positive example counts.
        device: where to compute; one that has float64.
        progress: show a bar.
    """
    return _Miner(features, offsets, signs, num_classes, c, scale, positive_weight, torch.device(device)).run(progress)


@dataclass
class _Miner:
    features: np.ndarray
    offsets: np.ndarray
    signs: Callable[[int], np.ndarray]
    num_classes: int
    c: float
    scale: float
    positive_weight: float
    device: torch.device

    def run(self, progress: bool) -> Mined:
        """Rounds until no class finds a new hard negative."""
        width = self.features.shape[1]
        weight = torch.zeros(self.num_classes, width, dtype=torch.float64, device=self.device)
        mined = Mined(LinearModel(weight, weight.new_zeros(self.num_classes)), *self._begin())
        mined.support = np.zeros(self.num_classes, np.int64)
        going = list(range(self.num_classes))
        with tqdm(desc="mining", unit="round", disable=None if progress else True, leave=False) as bar:
            while going:
                for k in going:
                    self._fit(mined, k)
                found = self._scan(mined.model, going)
                mined.rounds.append(np.array([len(found.get(k, ())) for k in range(self.num_classes)]))
                for k, rows in found.items():
                    self._kept[k] = np.union1d(self._kept[k], rows)
                going = [k for k in going if len(found[k])]
                bar.update()
                bar.set_postfix(new=int(mined.rounds[-1].sum()))
        return mined

    def _begin(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of positives and negatives; notes the positives' rows and some negatives', spread over all blocks."""
        positives: list[list[np.ndarray]] = [[] for _ in range(self.num_classes)]
        counts = np.zeros(self.num_classes, np.int64)
        share = -(-FIRST // max(1, len(self.offsets) - 1))
        first: list[list[np.ndarray]] = [[] for _ in range(self.num_classes)]
        for block, start in enumerate(self.offsets[:-1]):
            signs = self.signs(block)
            counts += (signs < 0).sum(axis=0)
            for k in range(self.num_classes):
                positives[k].append(start + np.flatnonzero(signs[:, k] > 0))
                first[k].append(start + _spread(np.flatnonzero(signs[:, k] < 0), share))
        none = np.empty(0, np.int64)
        self._positives = [np.concatenate([none, *rows]) for rows in positives]
        self._kept = [np.concatenate([none, *rows]) for rows in first]
        return np.array([len(rows) for rows in self._positives]), counts

    def _fit(self, mined: Mined, k: int) -> None:
        """Class k's machine on what it keeps; lets easy negatives go."""
        positives, negatives = self._positives[k], self._kept[k]
        if not len(positives) + len(negatives):
            return
        x = torch.cat([self._rows(positives), self._rows(negatives)])
        signs = torch.ones(len(x), 1, dtype=torch.int64, device=self.device)
        signs[len(positives) :] = -1
        weights = torch.where(signs[:, 0] > 0, self.positive_weight, 1.0)
        fitted = fit_svms(x, signs, self.c, weights=weights)
        scores = fitted.scores(x[len(positives) :])[:, 0].cpu().numpy()
        mined.model.weight[k], mined.model.bias[k] = fitted.weight[0] * self.scale, fitted.bias[0]
        mined.support[k] = (scores > -1).sum()
        self._kept[k] = negatives[scores > EASY]

    def _scan(self, model: LinearModel, classes: list[int]) -> dict[int, np.ndarray]:
        """The rows of each class's new hard negatives, at most `MOST`, hardest first."""
        rows: dict[int, list[np.ndarray]] = {k: [] for k in classes}
        scores: dict[int, list[np.ndarray]] = {k: [] for k in classes}
        for block, (start, end) in enumerate(zip(self.offsets[:-1], self.offsets[1:], strict=True)):
            values = torch.from_numpy(np.array(self.features[start:end])).to(self.device)
            found = model.scores(values).cpu().numpy()
            hard = (found > -1) & (self.signs(block) < 0)
            for k in classes:
                first, last = np.searchsorted(self._kept[k], (start, end))
                hard[self._kept[k][first:last] - start, k] = False  # these it has
                new = np.flatnonzero(hard[:, k])
                rows[k].append(start + new)
                scores[k].append(found[new, k])
        return {k: _hardest(rows[k], scores[k]) for k in classes}

    def _rows(self, rows: np.ndarray) -> Tensor:
        """(rows, D) float64, scaled."""
        return torch.from_numpy(np.array(self.features[rows])).to(self.device, torch.float64) * self.scale


def _spread(rows: np.ndarray, count: int) -> np.ndarray:
    """`count` of the rows at even distances, or all where they are fewer."""
    return rows if len(rows) <= count else rows[np.linspace(0, len(rows) - 1, count).astype(np.int64)]


def _hardest(rows: list[np.ndarray], scores: list[np.ndarray]) -> np.ndarray:
    every, score = np.concatenate([np.empty(0, np.int64), *rows]), np.concatenate([np.empty(0), *scores])
    return every[np.argsort(-score, kind="stable")[:MOST]]
