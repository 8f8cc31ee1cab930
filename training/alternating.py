"""The four steps after which Faster R-CNN's two networks share their convolutions (Ren et al. 2015,
https://arxiv.org/abs/1506.01497, section 3.2, "4-Step Alternating Training").

A step's checkpoint holds all that the next one needs. Shared is the whole backbone, its pyramid too where there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..detectors.faster_rcnn import FasterRCNN


@dataclass(frozen=True)
class Step:
    """One of the four trainings.

    Attributes:
        name: of its folder.
        part: what learns: the region proposal network, or the head that looks at its proposals.
        shared: whether the backbone is shared by both already, and therefore fixed; else it learns too.
        text: what happens, in half a line.
    """

    name: str
    part: Literal["rpn", "head"]
    shared: bool
    text: str


STEPS = (
    Step("step1_rpn", "rpn", False, "backbone and region proposal network"),
    Step("step2_head", "head", False, "another backbone and the head, on the proposals of step 1"),
    Step("step3_rpn", "rpn", True, "region proposal network alone, on the backbone of step 2"),
    Step("step4_head", "head", True, "head alone, on the proposals of step 3"),
)


def prepare(model: FasterRCNN, step: Step, before: FasterRCNN | None) -> None:
    """Makes a model ready for a step: its weights, what learns, and what is held still.

    Args:
        model: as its recipe makes it, and as step 1 leaves it. Step 2 takes the proposal network of the step before
            alone, and keeps it for step 3; steps 3 and 4 take everything.
        step: what comes.
        before: what the step before left; None before the first.
    """
    if before is not None and step.shared:
        model.load_state_dict(before.state_dict())
    elif before is not None:
        model.rpn.load_state_dict(before.rpn.state_dict())
    teach(model, step.part, backbone=not step.shared)


def teach(model: FasterRCNN, part: Literal["rpn", "head"], *, backbone: bool) -> None:
    """Lets one part of a model learn, with or without the backbone; the rest is held still, batch norms too."""
    model.learns = (part,)
    still = [model.roi_heads if part == "rpn" else model.rpn]
    for module in still if backbone else [*still, model.backbone]:
        module.requires_grad_(False)
    model.train(model.training)  # sees to the batch norms
