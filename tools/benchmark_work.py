"""What `sightline benchmark speed` times: a model's answers and steps of its training, and the floor under each.

The floor is the model's own backbone and neck alone on the very batch that they get from it, normalised: as it is read for
answers, and forward and backward of the sum of its maps' means for training.

Letters: B pictures, N objects of each, H, W pixels of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from sightline.backbone.model import Model
from sightline.backbone.precision import Precision, mixed
from sightline.datasets.batching import STRIDE
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Batch, Instances, LabelMaps
from sightline.datasets.table import DataError
from sightline.detectors.compiled import compile_detect, one_graph
from sightline.segmentation import Segmenter
from sightline.tools.benchmark_models import TorchvisionDetector, TorchvisionSegmenter, build_alike, dictionaries
from sightline.tools.timing import pictures

TASKS = ("detection", "instance_segmentation", "segmentation")
DRAWN = 8  # different pictures; larger batches show them over again
MASK_SIDE = 28  # cells of a true mask, as `sightline train` asks for them
Job = Callable[[], object]


@dataclass(frozen=True)
class Setting:
    """What a model is timed on.

    Attributes:
        device: where.
        batch: B.
        size: (height, width) of the pictures.
        objects: N, to learn from; None where all models are segmenters, which learn from a label for each pixel.
        classes: C, of models of random weights; None for what each knows by itself.
        precision: see `mixed`; of both sides.
        compiled: ours and the floors are compiled, each as one graph; torchvision's networks cannot be.
    """

    device: str
    batch: int = 1
    size: tuple[int, int] = (800, 1216)
    objects: int | None = 8
    classes: int | None = None
    precision: Precision = "auto"
    compiled: bool = False


class TooSmall(DataError):
    """The pictures are too few and too small to learn from."""


class Work(NamedTuple):
    """A model's work and the floor under it.

    Attributes:
        model: on its device.
        whole: from uint8 pictures on the device to the answer there; or a step of training.
        floor: None of models without a backbone.
    """

    model: Model
    whole: Job
    floor: Job | None


def built(spec: str, setting: Setting) -> Model:
    """A model in evaluation mode, with the same weights at each call.

    Raises:
        DataError: it neither detects nor segments, or as `build_alike`.
    """
    torch.manual_seed(0)
    model = build_alike(spec, setting.device, setting.classes)
    if model.task not in TASKS:
        raise DataError(f"{spec} is a model of {model.task}: only detectors and segmenters are timed here")
    return model


def is_peer(model: nn.Module) -> bool:
    """Whether a model is torchvision's."""
    return isinstance(model, (TorchvisionDetector, TorchvisionSegmenter))


def batch_for(model: Model, setting: Setting) -> Batch:
    """Drawn pictures in the host's memory, with what the model learns from: the same for all models of a task."""
    table = shapes_table("val", min(setting.batch, DRAWN), min(setting.size))
    segmenting = isinstance(model, Segmenter)
    proposer = None if segmenting else model.proposer
    batch = pictures(table, setting.batch, setting.size, proposer, multiple=1 if segmenting else STRIDE)
    classes = len(model.categories)
    if segmenting:
        return replace(batch, label_maps=random_labels(setting, classes))
    masks = model.task == "instance_segmentation"
    return replace(batch, targets=random_objects(setting, classes, masks=masks))


def random_objects(setting: Setting, num_classes: int, *, masks: bool) -> Instances:
    """(B, N) boxes anywhere in the pictures, their sides from 2 to 35 percent of theirs, padded as a loader does it.

    Masks fill their boxes.
    """
    random = torch.Generator().manual_seed(0)
    count, (height, width) = setting.objects, setting.size
    padded = max(8, 1 << (count - 1).bit_length())
    place, extent = torch.rand(2, setting.batch, padded, 2, generator=random)
    frame = torch.tensor([width, height], dtype=torch.float32)
    extent = (0.02 + 0.33 * extent) * frame
    corner = place * (frame - extent)
    labels = torch.randint(num_classes, (setting.batch, padded), generator=random)
    labels[:, count:] = -1
    full = torch.ones(setting.batch, padded, MASK_SIDE, MASK_SIDE) if masks else None
    return Instances(torch.cat([corner, corner + extent], dim=-1), labels, masks=full)


def random_labels(setting: Setting, num_classes: int) -> LabelMaps:
    """(B, H, W), each pixel's drawn by itself."""
    random = torch.Generator().manual_seed(0)
    shape = (setting.batch, *setting.size)
    return LabelMaps(torch.randint(num_classes, shape, generator=random).to(torch.int16))


# -- Answers --


def inference(model: Model, batch: Batch, setting: Setting, *, floored: bool = True) -> Work:
    """From pixels to objects or label maps; of torchvision's to what its own users get."""
    recorded = batch.images.is_cuda  # as `compile_detect` has it
    floor = _floor(model, batch, setting, recorded) if floored else None
    if setting.compiled and not is_peer(model):
        _compile_answer(model, recorded)
    verb = answer_of(model)

    def answer() -> object:
        with torch.inference_mode(), mixed(setting.device, setting.precision):
            return verb(*batch.inputs)

    def read() -> object:
        with torch.inference_mode(), mixed(setting.device, setting.precision):
            return floor()

    return Work(model, answer, None if floor is None else read)


def answer_of(model: Model) -> Callable[..., object]:
    """The verb from pixels to the answer."""
    if isinstance(model, TorchvisionDetector):
        return model.find
    return model.segment if isinstance(model, Segmenter) else model.detect


def _compile_answer(model: Model, recorded: bool) -> None:
    if isinstance(model, Segmenter):
        model.segment = one_graph(model.segment, recorded=recorded)
    else:
        compile_detect(model)


# -- Training --


def training(model: Model, batch: Batch, setting: Setting, *, floored: bool = True) -> Work:
    """Steps of training in which all weights learn: forward, losses, backward, and SGD with momentum.

    The rate is zero, so that each round has the same work to do. Where a batch norm gets one value of a channel, a step raises
    `TooSmall`.
    """
    floor = _floor(model, batch, setting, recorded=False) if floored else None
    model.train().requires_grad_(True)
    losses = _losses(model, batch, setting)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)

    def step() -> None:
        with mixed(setting.device, setting.precision), _large_enough(setting):
            loss = torch.stack(list(losses().values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def bare_step() -> None:
        with mixed(setting.device, setting.precision):
            maps = pytree.tree_leaves(floor())
        optimizer.zero_grad()
        torch.stack([each.float().mean() for each in maps]).sum().backward()

    return Work(model, step, None if floor is None else bare_step)


@contextmanager
def _large_enough(setting: Setting) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise TooSmall(
            f"a batch norm cannot learn from the one value that a batch of {setting.batch} of {setting.size[0]}x"
            f"{setting.size[1]} pixels leaves of a channel: take --batch {setting.batch + 1} or a larger --size"
        ) from error


def _losses(model: Model, batch: Batch, setting: Setting) -> Callable[[], dict[str, Tensor]]:
    images, sizes, *proposals = batch.inputs
    if isinstance(model, TorchvisionDetector):
        return partial(model.learn, images, sizes, dictionaries(batch.targets, tuple(images.shape[-2:])))

    def losses(images: Tensor, sizes: Tensor, targets: Any, *proposals: Instances) -> dict[str, Tensor]:
        return model.losses(model(images, sizes, *proposals), targets)

    if setting.compiled and not is_peer(model):
        losses = one_graph(losses)
    truth = batch.label_maps if isinstance(model, Segmenter) else batch.targets
    return partial(losses, images, sizes, truth, *proposals)


# -- The floor --


def _floor(model: Model, batch: Batch, setting: Setting, recorded: bool) -> Callable[[], list] | None:
    """The backbone on what the model gives it, once or several times; None of a model that has none by that name."""
    backbone = getattr(getattr(model, "network", model), "backbone", None)
    if backbone is None:
        return None
    inputs = _inputs_of(backbone, partial(answer_of(model), *batch.inputs), setting)
    if not inputs:  # it is used in parts
        return None
    if setting.compiled:
        backbone = one_graph(backbone, recorded=recorded)
    return lambda: [backbone(*each) for each in inputs]


def _inputs_of(module: nn.Module, job: Job, setting: Setting) -> Sequence[tuple]:
    """The arguments of each call of a module while a job is done."""
    seen: list[tuple] = []
    hook = module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments))
    # Not in inference mode: training could not use its tensors.
    with torch.no_grad(), mixed(setting.device, setting.precision):
        job()
    hook.remove()
    return seen


WORKS: dict[str, Callable[..., Work]] = {"inference": inference, "training": training}


def prepare(spec: str, work: str, setting: Setting, *, floored: bool = True) -> Work:
    """A model's work of that name, ready to be done again and again; its batch is on the device.

    To know the floor, the model is run once.

    Raises:
        DataError: as `built`.
    """
    model = built(spec, setting)
    return WORKS[work](model, batch_for(model, setting).to(setting.device), setting, floored=floored)


def prepare_alone(spec: str, work: str, setting: Setting) -> tuple[Model, Job]:
    """The same for a process of its own; without the floor, and op by op: a compiler's own memory would hide the model's."""
    ready = prepare(spec, work, replace(setting, compiled=False), floored=False)
    return ready.model, ready.whole
