"""A model as one graph in a file, from uint8 pictures to answers, and how the file's answers compare with the model's.

What a file answers are the fields of the model's answers, in their order: `boxes`, `labels` and `scores` of a detector, and
its masks or landmarks; `labels` and `scores` of a segmenter; `tokens`, `scores` and `attention` of a captioner.

Letters: B pictures, H, W pixels of the frame.
"""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from sightline.backbone.model import Model, evaluating
from sightline.captioning import Captioner
from sightline.datasets.structures import Captions, Instances, LabelMaps
from sightline.datasets.table import DataError
from sightline.detectors.onnx_operators import translations

INPUTS = ("images", "sizes")
Answers = Instances | LabelMaps | Captions
# What runs a file: pictures (B, 3, H, W) uint8 and sizes (B, 2) int64 to the answers' tensors, in the order of their names.
Runner = Callable[[Tensor, Tensor], Sequence[Tensor]]

EXACT = 1e-3  # of a score or a share
NEAR = 0.05  # pixels of the frame
LONG = 2000  # steps of a graph that stays as it is: what makes it shorter takes their square in time


class Graph(nn.Module):
    """A model from pictures to the tensors of its answers.

    Args:
        model: in evaluation mode; its answers are taken to be of one kind and length for all pictures of a frame.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor, sizes: Tensor) -> list[Tensor]:
        """(B, 3, H, W) uint8 RGB and (B, 2) valid (height, width), at the top left, to the answers' tensors."""
        return list(tensors(self.model.decode(self.model(images, sizes), sizes)).values())


def tensors(answers: Answers) -> dict[str, Tensor]:
    """What is there of the answers, by name."""
    values = {field.name: getattr(answers, field.name) for field in fields(answers)}
    return {name: value for name, value in values.items() if value is not None}


def answers_of(model: Model, images: Tensor, sizes: Tensor) -> Answers:
    """What the model itself says of (B, 3, H, W) uint8 pictures of sizes (B, 2), in float32."""
    with evaluating(model), torch.no_grad():
        return model.decode(model(images, sizes), sizes)


def write(model: Model, images: Tensor, sizes: Tensor, names: Sequence[str], path: Path, way: str) -> None:
    """The file of the graph for pictures of just this number and frame, with float32 inside.

    Args:
        model: in evaluation mode, on the CPU.
        images: (B, 3, H, W) uint8 RGB.
        sizes: (B, 2) int64.
        names: of the answers' tensors.
        way: a key of `WAYS`.

    Raises:
        DataError: the model is no single graph, or packages are missing.
    """
    translated = _translations(model) if way == "onnx" else {}
    with evaluating(model), torch.no_grad():
        try:
            program = torch.export.export(Graph(model), (images, sizes))
        except Exception as error:  # of whatever kind: torch has no common one
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise DataError(f"this model is no single graph: {reason}") from error
    about = {"sightline": json.dumps(_about(model, images))}
    if way == "torch":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of weights that share memory on a GPU
            torch.export.save(program, path, extra_files=about)
        return
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    graph = torch.onnx.export(
        program,
        (images, sizes),
        dynamo=True,
        verbose=False,
        optimize=len(program.graph.nodes) < LONG,
        input_names=INPUTS,
        output_names=list(names),
        custom_translation_table=translated,
    )
    RemoveUnusedNodesPass()(graph.model)  # onnxruntime would warn of them
    graph.model.metadata_props.update(about)
    graph.save(path)


def _translations(model: Model) -> dict[Callable[..., Any], Callable[..., Any]]:
    try:
        import onnxruntime  # noqa: F401 - it checks the file: rather missed now than after minutes

        found = translations(len(getattr(model, "categories", ())))
    except ImportError as error:
        raise DataError(f'{error.name} is missing: pip install "sightline[export]"') from error
    logging.getLogger("onnxscript").setLevel(logging.WARNING)  # it tells of every constant that it leaves alone
    return found


def _about(model: Model, images: Tensor) -> dict[str, Any]:
    """What whoever runs the file has to know beside the tensors."""
    about = {"task": model.task, "frame": list(images.shape[2:]), "resize": list(model.resize)}
    if isinstance(model, Captioner):
        return about | {"words": list(model.vocabulary.words)}
    return about | {"categories": list(model.categories)}


def open_onnx(path: Path) -> Runner:
    """The graph in onnxruntime, on the CPU."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def run(images: Tensor, sizes: Tensor) -> list[Tensor]:
        given = dict(zip(INPUTS, (images.numpy(), sizes.numpy()), strict=True))
        return [torch.from_numpy(value) for value in session.run(None, given)]

    return run


def open_torch(path: Path) -> Runner:
    """The graph that `torch.export.load` reads."""
    return torch.export.load(path).module()


class Way(NamedTuple):
    """A kind of file: what its name ends in, and how it is opened."""

    suffix: str
    opened: Callable[[Path], Runner]


WAYS = {"onnx": Way(".onnx", open_onnx), "torch": Way(".pt2", open_torch)}


# -- Comparing --


def agreement(expected: Answers, given: Sequence[Tensor]) -> tuple[int, int]:
    """How many of the model's answers a file gives too, and how many there are: objects, pixels or words.

    An object counts where one of its label lies within `NEAR` with a score within `EXACT` (and its masks or landmarks are as
    near), whatever its place in the list: near ties change places. Objects of the file alone count as missed ones. A word
    counts where its sentence's score, and what was attended to, are within `EXACT`, too.

    Args:
        expected: the model's, of B pictures.
        given: the file's tensors.
    """
    found = type(expected)(**dict(zip(tensors(expected), given, strict=True)))
    if isinstance(expected, Captions):
        said = expected.tokens != 0
        alike = (found.tokens == expected.tokens) & ((found.scores - expected.scores).abs() <= EXACT)[..., None]
        if expected.attention is not None:
            alike &= (found.attention - expected.attention).abs().amax(-1) <= EXACT
        return int((alike & said).sum()), int(said.sum())
    if isinstance(expected, LabelMaps):
        inside = expected.labels >= 0
        alike = (found.labels == expected.labels) & ((found.scores - expected.scores).abs() <= EXACT)
        return int((alike & inside).sum()), int(inside.sum())
    pairs = [_pairs(expected[i], found[i]) for i in range(len(expected.boxes))]
    return sum(alike for alike, _ in pairs), sum(total for _, total in pairs)


def _pairs(expected: Instances, found: Instances) -> tuple[int, int]:
    """Of one picture: objects that have a counterpart, and those of the longer list."""
    near = expected.labels[:, None] == found.labels
    near &= _apart(expected.boxes, found.boxes) <= NEAR
    near &= _apart(expected.scores[:, None], found.scores[:, None]) <= EXACT
    if expected.landmarks is not None:
        near &= _apart(expected.landmarks.flatten(1), found.landmarks.flatten(1)) <= NEAR
    if expected.masks is not None:
        near &= _apart(expected.masks.flatten(1), found.masks.flatten(1)) <= EXACT
    alike = min(int(near.any(1).sum()), int(near.any(0).sum()))
    return alike, max(near.shape)


def _apart(a: Tensor, b: Tensor) -> Tensor:
    """(N, M), the largest difference in any of the numbers of (N, K) and (M, K)."""
    return torch.cdist(a.double(), b.double(), p=float("inf"))
