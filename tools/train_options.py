"""The options of `sightline train`: what `--run.…` asks for, and what is wrong with what was asked."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from sightline.captioning import CAPTIONERS
from sightline.datasets.table import DataError, nearest
from sightline.detectors import DETECTORS, Detector
from sightline.detectors.rcnn import RegionHead
from sightline.segmentation import INSTANCE_SEGMENTERS, SEGMENTERS
from sightline.training import overfit, rate_finder, schedules

IN_PLACE = ("overfit", "find_rate", "linear")


@dataclass
class RunOptions:
    """What happens around the steps, or in their place.

    Args:
        ema: decay of a moving average of the weights (0.999, say), which is then validated and saved; null for none. A run's
            first steps keep less, see `MovingAverage`.
        patience: stop after so many validations without a better score; null to go on to the end.
        unfreeze: epochs at each of which one more stage of the backbone is trained, from the last downwards; or
            "plateau", for one more whenever the score does not improve.
        unfreeze_patience: how many validations without a better score make a plateau.
        ratios: log by how much steps change the weights, stage by stage; about 1e-3 of their size is healthy.
        statistics: normalise with the mean and deviation in this file, made by `sightline inspect DATA --statistics FILE`;
            for networks that start from random weights.
        tensorboard: log to TensorBoard too.
        machines: after training, replace a region classifier's last layer by linear support vector machines and ridge
            regressors (R-CNN); with `--trainer.max_epochs 0`, on the weights as they are given.
        overfit: do not train, but see whether the model can learn one batch by heart.
        find_rate: do not train, but let the learning rate rise until the loss diverges, and suggest one.
        linear: do not train by gradient, but fit a classifier's last layer to the features of the rest, as linear
            support vector machines ("svm") or softmax regression ("softmax").
        linear_c: how much errors weigh against small weights in that fit; null chooses by cross-validation.
    """

    ema: float | None = None
    patience: int | None = None
    unfreeze: list[int] | Literal["plateau"] | None = None
    unfreeze_patience: int = 2
    ratios: bool = False
    statistics: str | None = None
    tensorboard: bool = False
    machines: bool = False
    overfit: bool = False
    find_rate: bool = False
    linear: Literal["svm", "softmax"] | None = None
    linear_c: float | None = None

    @property
    def only_steps(self) -> int | None:
        """How many steps are taken where a few of them are all that is done, with no validation and no checkpoint."""
        return overfit.STEPS if self.overfit else rate_finder.STEPS if self.find_rate else None

    @property
    def in_place(self) -> list[str]:
        """The names of what is asked for in place of training."""
        return [name for name in IN_PLACE if getattr(self, name)]


def check_for_detector(options: RunOptions, model: Detector, arguments: Namespace) -> None:
    """Sees that the options go with the model, before anything is done.

    Args:
        options: what is asked for.
        model: what is to be trained.
        arguments: of its builder.

    Raises:
        DataError: they do not.
    """
    _check_start(options, arguments)
    if options.machines and not isinstance(getattr(model, "roi_heads", None), RegionHead):
        raise DataError(
            "--run.machines is for R-CNN, which looks at one region at a time (sightline train rcnn); this recipe's model is "
            f"{type(model).__name__}: leave it out"
        )


def check_one_thing(options: RunOptions) -> None:
    """Sees that what is asked for in place of training is one thing.

    Raises:
        DataError: it is several, or something that comes after training is asked for too.
    """
    asked = options.in_place
    if len(asked) > 1:
        raise DataError(f"--run.{asked[0]} and --run.{asked[1]} each stand in place of training: ask for one of them")
    if asked and options.machines:
        raise DataError(
            f"--run.machines comes after training, in whose place --run.{asked[0]} stands: ask for one of them"
        )


def _check_start(options: RunOptions, arguments: Namespace) -> None:
    given = next((name for name in ("weights", "backbone_weights") if arguments.get(name) is not None), None)
    if options.linear is not None and given is None:
        rank_zero_info(
            "warning: --run.linear on a network of random weights; name some by --model.detector.init_args.weights"
        )
    if options.statistics is not None and given:
        raise DataError(
            f"--run.statistics is for random weights: those of {given} expect the pictures they were trained on"
        )


class Parser(LightningArgumentParser):
    """Names the nearest option when one is mistyped."""

    def error(self, message: str, ex: Exception | None = None) -> Any:
        text = f"{message} {ex or ''}"
        known = [option for action in self._actions for option in action.option_strings]
        unknown = re.findall(r"--[\w.-]+", text.split("nrecognized arguments")[-1]) if "nrecognized" in text else []
        unknown += re.findall(r"[Kk]ey '([\w.]+)' is not expected", text)
        for option in unknown:
            close = difflib.get_close_matches("--" + option.lstrip("-"), known, n=1)
            message += f"\n  did you mean {close[0]}?" if close else ""
        raise DataError(self._refused(text) or message.strip())

    def _refused(self, text: str) -> str | None:
        """One line in place of jsonargparse's several: an option of a few words, or of parts, has no such word or part."""
        key, part = re.search(r'Parser key "([\w.]+)"', text), re.search(r"Option '(\w+)' is not accepted", text)
        action = key and next((action for action in self._actions if action.dest == key[1]), None)
        hint, given = getattr(action, "_typehint", None), re.findall(r"(?:Given|Got) value: (.*)", text)
        if key and part and key[1] in BUILT:
            return f"--{key[1]} is built with no {part[1]!r}{nearest(part[1], _builder_arguments(BUILT[key[1]]))}"
        if key and (name := re.search(r"Expected a dot import path string: (\S+)", text)) and key[1] in BUILT:
            known = BUILT[key[1]]
            return f"--{key[1]} knows no {name[1]!r}{nearest(name[1], known) or '.'} There are {', '.join(known)}"
        if key and given and (words := words_of(hint)):
            return f"--{key[1]} must be one of {', '.join(words)}, got {given[-1]!r}{nearest(given[-1], words)}"
        if key and given and (kinds := kinds_of(hint)):
            return f"--{key[1]} must be {' or '.join(kinds)}, got {given[-1]!r}"
        parts = inits_of(hint)
        if not (part and parts):
            return None
        return f"--{key[1]} has no {part[1]!r}{nearest(part[1], parts)}; it has {', '.join(parts)}"


# The options whose value is made by a function or class, and those by name.
BUILT = {
    "model.optimizer": {
        name: kind
        for name, kind in vars(torch.optim).items()
        if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
    },
    "model.schedule": {
        name: kind
        for name, kind in vars(schedules).items()
        if inspect.isclass(kind) and issubclass(kind, schedules.Schedule)
    },
    "model.detector": {**DETECTORS, **INSTANCE_SEGMENTERS},
    "model.segmenter": SEGMENTERS,
    "model.captioner": CAPTIONERS,
}


def _builder_arguments(builders: Mapping[str, Callable[..., Any]]) -> set[str]:
    """What any of the builders takes."""
    return {name for builder in builders.values() for name in inspect.signature(builder).parameters}


def inits_of(hint: Any) -> list[str]:
    """The names of what a dataclass is made from, of a hint such as `Mixing | None`; none of any other hint."""
    classes = [one for one in get_args(hint) if is_dataclass(one)]
    return [part.name for part in fields(classes[0]) if part.init] if classes else []


KINDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    list[int]: "a list of whole numbers such as [2,4]",
    NoneType: "null",
}


def kinds_of(hint: Any) -> list[str]:
    """What may be written, of a hint of the kinds above and words such as `float | None`; nothing of any other hint."""
    kinds: list[str | None] = []
    for one in get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]:
        kinds += map(str, get_args(one)) if get_origin(one) is Literal else [KINDS.get(one)]
    known = [kind for kind in kinds if kind is not None]
    return known if len(known) == len(kinds) else []


def words_of(hint: Any) -> list[str]:
    """What may be written, of a hint of words alone such as `Literal["svm", "softmax"] | None`; nothing of any other hint."""
    several = get_args(hint) if get_origin(hint) in (Union, UnionType) else [hint]
    choices = [one for one in several if one is not NoneType]
    if any(get_origin(one) is not Literal for one in choices):
        return []
    words = list(dict.fromkeys(str(word) for one in choices for word in get_args(one)))
    return [*words, "null"] if NoneType in several else words
