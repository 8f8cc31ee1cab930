"""Weights from a file, an address or a named source into a model; a partial load is an error unless asked for.

Files are read with `weights_only=True`: tensors, never code. Where named sources lie is written in `sources.py`.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from .onnx_weights import read_onnx
from .sources import WeightsError, find_weights

log = logging.getLogger(__name__)

# Key styles of torchvision's older detection files: a pattern and its replacement each.
OLD_TORCHVISION = (
    (r"(fpn\.(?:inner|layer)_blocks\.\d+)\.(weight|bias)$", r"\1.0.\2"),
    (r"rpn\.head\.conv\.(weight|bias)$", r"rpn.head.conv.0.0.\1"),
)
# Where a backbone's body lies in a model's state dict and in a training checkpoint; the second "body" is a pyramid's.
BACKBONE_OF = r"((detector|captioner|segmenter)\.)?backbone\.(body\.)*"


@dataclass
class Report:
    """What became of each key; keys are the model's, after renaming.

    Attributes:
        source: the file that was read.
        loaded: copied into the model.
        missing: of the model, not in the file: left as they were.
        unexpected: of the file, not in the model: not used.
        mismatched: of both, but of another shape or kind: left as they were; (key, file's, model's).
        left_out: of the file, outside the part that was asked for: not looked at; the file's own keys.
    """

    source: str
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[tuple[str, str, str]] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def summary(self) -> str:
        """One line of counts, and one for each kind of key that was not loaded."""
        lines = [f"{self.source}: {len(self.loaded)} tensors loaded"]
        lines += [f"missing from the file: {_some(self.missing)}"] if self.missing else []
        lines += [f"not in the model: {_some(self.unexpected)}"] if self.unexpected else []
        shapes = [f"{key} (file {theirs}, model {ours})" for key, theirs, ours in self.mismatched]
        lines += [f"of another shape: {_some(shapes)}"] if shapes else []
        lines += [f"left out, of the file's other parts: {_some(self.left_out)}"] if self.left_out else []
        return "\n  ".join(lines)


def load_weights(
    model: nn.Module,
    source: str | os.PathLike,
    *,
    name: str | None = None,
    key: str | None = None,
    within: str | None = None,
    rename: Sequence[tuple[str, str]] = (),
    convert: Callable[[dict[str, Tensor], Path], dict[str, Tensor]] | None = None,
    allow_missing: Sequence[str] = (),
    allow_unexpected: Sequence[str] = (),
) -> Report:
    """Copies weights into a model, converted to its dtype and device; nothing is copied unless everything fits.

    `num_batches_tracked` counts nothing that outputs depend on, and is neither missed nor unexpected.

    Args:
        source: a path (.pth, .pt, .ckpt, .safetensors, .onnx), an http(s) address, or a named source of the model such as
            "imagenet".
        name: the model's name in `SOURCES`, where named sources are looked up.
        key: where in the file the weights lie, e.g. "ema"; by default the whole file, or its "state_dict" or "model".
        within: a pattern of what keys begin with in a file where the model is part of a larger one, e.g. `BACKBONE_OF`:
            if any do, only those are taken, without it, and the others are left out. A file of the model alone loads
            as ever.
        rename: patterns and replacements (`re.sub`), applied in turn to each of the file's keys, e.g.
            `OLD_TORCHVISION`, or `[(r"^backbone\\.", "")]` to take a detector's backbone.
        convert: from the renamed tensors and the file's path to the model's, where names alone do not do.
        allow_missing: prefixes of the model's keys that may keep their values, because the file lacks them or has
            another shape, e.g. ("fc.",) for another number of classes.
        allow_unexpected: prefixes of the file's keys that may go unused.

    Raises:
        WeightsError: the file cannot be had or read, or leaves something missing, unexpected or of another shape.
    """
    path = find_weights(source, name=name)
    theirs, left_out = _part(_state_dict(path, read_file(path), key), within, path)
    theirs = _renamed(theirs, rename, path)
    theirs = theirs if convert is None else convert(theirs, path)
    ours = model.state_dict()
    report = _compare(str(path), theirs, ours)
    report.left_out = left_out
    wrong = [k for k in (*report.missing, *(m[0] for m in report.mismatched)) if not k.startswith(tuple(allow_missing))]
    wrong += [k for k in report.unexpected if not k.startswith(tuple(allow_unexpected))]
    if wrong or not report.loaded:
        hint = (
            "\n  Is it the file of another model? What may be left out must be named: allow_missing, allow_unexpected."
        )
        raise WeightsError(f"weights do not fit {type(model).__name__}. {report.summary()}{hint}")
    model.load_state_dict({k: theirs[k] for k in report.loaded}, strict=False)
    log.log(logging.WARNING if report.unexpected or report.mismatched else logging.INFO, report.summary())
    return report


def read_file(path: Path) -> object:
    """What is in a file of tensors, on the CPU; no code in it is run.

    Raises:
        WeightsError: unreadable, truncated, of another format, or holding pickled code.
    """
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        if path.suffix == ".onnx":
            return read_onnx(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except (pickle.UnpicklingError, KeyError, AttributeError, IndexError, TypeError) as error:
        # torch's own words advise to load the file with its code, or are of a reader lost in other bytes: not passed on.
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if code:
            raise WeightsError(
                f"{path} holds pickled Python objects ({code[1]}), not tensors alone, and is refused: loading it would "
                "run code from the file. Ask its author for model.state_dict() saved with torch.save"
            ) from error
        raise WeightsError(f"{path} is damaged, or no file that torch.save wrote") from error
    except (EOFError, RuntimeError, OSError, ValueError) as error:
        raise WeightsError(f"{path} is truncated, damaged or of another format: {_first_line(error)}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load_file
    except ImportError as error:
        raise WeightsError(f'{path} needs the safetensors package: pip install "safetensors>=0.4"') from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise WeightsError(f"{path} is truncated or damaged: {error}") from error


def _state_dict(path: Path, content: object, key: str | None) -> dict[str, Tensor]:
    """The dictionary of tensors within a file's content."""
    if isinstance(content, dict) and key is None:
        key = next((k for k in ("state_dict", "model") if isinstance(content.get(k), dict)), None)
    found = content.get(key) if isinstance(content, dict) and key is not None else content
    if not isinstance(found, dict) or not found or not all(isinstance(value, Tensor) for value in found.values()):
        holds = f"keys {_some(list(content))}" if isinstance(content, dict) else f"a {type(content).__name__}"
        where = f" at key {key!r}" if key else ""
        raise WeightsError(
            f"{path} has no dictionary of tensors{where}; it holds {holds}. Name the right one with key="
        )
    return dict(found)


def _part(state: dict[str, Tensor], within: str | None, path: Path) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors under a prefix, named without it, and the other keys; everything where nothing lies under it."""
    prefixes = {key: match[0] for key in state if within is not None and (match := re.match(within, key))}
    if not prefixes:
        return state, []
    part: dict[str, Tensor] = {}
    for key, prefix in prefixes.items():
        if part.setdefault(key.removeprefix(prefix), state[key]) is not state[key]:
            raise WeightsError(
                f"{path}: two parts of the file have {key.removeprefix(prefix)!r}, the second is {key!r}"
            )
    return part, [key for key in state if key not in prefixes]


def _renamed(state: dict[str, Tensor], rename: Sequence[tuple[str, str]], path: Path) -> dict[str, Tensor]:
    result: dict[str, Tensor] = {}
    for old, value in state.items():
        new = old
        for pattern, replacement in rename:
            new = re.sub(pattern, replacement, new)
        if new in result:
            raise WeightsError(f"{path}: two keys become {new!r} after renaming, the second is {old!r}")
        result[new] = value
    return result


def _compare(source: str, theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> Report:
    report = Report(source)
    for key, value in ours.items():
        if key not in theirs:
            report.missing.append(key)
        elif theirs[key].shape != value.shape or theirs[key].is_floating_point() != value.is_floating_point():
            report.mismatched.append((key, _describe(theirs[key]), _describe(value)))
        else:
            report.loaded.append(key)
    report.unexpected = [key for key in theirs if key not in ours]
    report.missing = [key for key in report.missing if not key.endswith("num_batches_tracked")]
    report.unexpected = [key for key in report.unexpected if not key.endswith("num_batches_tracked")]
    return report


def _describe(value: Tensor) -> str:
    return f"{'x'.join(map(str, value.shape)) or 'scalar'} {str(value.dtype).removeprefix('torch.')}"


def _some(names: list, limit: int = 6) -> str:
    """The first names, and how many more there are."""
    more = f", … ({len(names)} in all)" if len(names) > limit else ""
    return ", ".join(map(str, names[:limit])) + more


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].split(". ")[0][:200]
