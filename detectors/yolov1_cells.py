"""What a cell of YOLO's output says, and where: the layout of the S x S x (5B + C) prediction (Redmon et al. 2015,
https://arxiv.org/abs/1506.02640, section 2).

Each cell holds K predictors of five numbers, one after another (x, y, square root of width, square root of height,
confidence), then C numbers for its categories. x and y are the box's centre within the cell, 0 to 1; the roots are those of
width and height in sides of the frame. Deviation: the paper's network predicts width and height, and their roots are taken in
the loss, which a negative width has none of; here, as in the authors' own code, the network predicts the roots.

Letters: B images, S cells a side of the grid, K predictors of a cell (the paper's B), C categories, N objects.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUMBERS = 5  # of a predictor


class Cells(NamedTuple):
    """The parts of a prediction.

    Attributes:
        places: (B, S, S, K, 4), x, y within the cell, and the roots of width and height.
        confidence: (B, S, S, K), the expected IoU with an object, 0 where there is none; not bounded.
        classes: (B, S, S, C), the categories' probabilities given an object; not bounded.
    """

    places: Tensor
    confidence: Tensor
    classes: Tensor


def split(prediction: Tensor, predictors: int) -> Cells:
    """The parts of (B, S, S, 5K + C)."""
    boxes = prediction[..., : NUMBERS * predictors].unflatten(-1, (predictors, NUMBERS))
    return Cells(boxes[..., :4], boxes[..., 4], prediction[..., NUMBERS * predictors :])


def decode(places: Tensor, side: int) -> Tensor:
    """Boxes from places.

    Args:
        places: (..., S, S, K, 4), as in `Cells`; a negative root counts as the positive one.
        side: of the frame, in pixels.

    Returns:
        (..., S, S, K, 4), xyxy in pixels, not clipped to the frame.
    """
    grid = places.shape[-3]
    step = torch.arange(grid, device=places.device, dtype=places.dtype)
    corners = torch.stack([step.expand(grid, grid), step[:, None].expand(grid, grid)], dim=-1)  # x, y of each cell
    centres = (places[..., :2] + corners[:, :, None]) * (side / grid)
    halves = places[..., 2:].square() * (side / 2)
    return torch.cat([centres - halves, centres + halves], dim=-1)


def encode(boxes: Tensor, grid: int, side: int) -> tuple[Tensor, Tensor]:
    """The cells that objects belong to, and their places: `decode` of a box's place in its cell is the box.

    Args:
        boxes: (..., 4), xyxy in pixels; a centre outside the frame belongs to the nearest cell.
        grid: S.
        side: of the frame, in pixels.

    Returns:
        (...) int64, the cell's index in the grid, row by row; (..., 4), x, y within it and the roots of width and height.
    """
    centres = (boxes[..., :2] + boxes[..., 2:]) * (grid / (2 * side))
    cells = centres.floor().clamp(0, grid - 1)
    roots = ((boxes[..., 2:] - boxes[..., :2]) / side).clamp(min=0).sqrt()
    index = (cells[..., 1] * grid + cells[..., 0]).long()
    return index, torch.cat([centres - cells, roots], dim=-1)
