"""`nms.nms` as two Triton kernels, whatever the boxes are: who overlaps whom, all at once, then who survives, word by word.

Letters: G groups, K boxes a group, W = ceil(K / 32) words of 32 boxes. Between the kernels stand G K W words of 4 bytes: 0.5 MB
a group of 2,048 boxes, 12.5 MB a group of 10,000.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .boxes_triton import box_iou, load_boxes

# Boxes that a program of the first kernel compares with the 32 of a word: a thread holds one of them and all of the word.
ROWS = 128


def nms_triton(boxes: Tensor, valid: Tensor, iou_threshold: float, labels: Tensor | None = None) -> Tensor:
    """See `nms.nms`; boxes are compared in float32."""
    groups, number = valid.shape
    kept = torch.empty_like(valid, dtype=torch.uint8, memory_format=torch.contiguous_format)
    if valid.numel() == 0:
        return kept.bool()
    words = triton.cdiv(number, 32)
    mask = torch.empty(groups, number, words, dtype=torch.int32, device=boxes.device)
    boxes = boxes.float().contiguous()
    same = None if labels is None else labels.contiguous()
    _overlaps[(words, triton.cdiv(number, ROWS), groups)](
        boxes, same, mask, iou_threshold, number, words, ROWS=ROWS, num_warps=ROWS // 32, enable_fp_fusion=False
    )
    # Few sizes, that few are compiled: up to 2,048 boxes, 4,096, 8,192, 16,384 …
    held = max(64, triton.next_power_of_2(words))
    usable = valid.contiguous().view(torch.uint8)
    _walk[(groups,)](mask, usable, kept, number, words, WORDS=held, num_warps=min(16, held // 64))
    return kept.view(torch.bool)


@triton.jit(do_not_specialize=["number", "words"])
def _overlaps(boxes, labels, mask, threshold, number, words, ROWS: tl.constexpr):
    """Bit c of mask[group, row, word]: box 32 word + c comes after the row, has its label and overlaps it.

    Words wholly before a row are not written.
    """
    word = tl.program_id(0)
    row = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    if word * 32 + 31 > tl.program_id(1) * ROWS:
        group = tl.program_id(2).to(tl.int64)
        boxes += group * number * 4
        bit = tl.arange(0, 32)
        column = word * 32 + bit
        rx0, ry0, rx1, ry1 = load_boxes(boxes, row, row < number)
        cx0, cy0, cx1, cy1 = load_boxes(boxes, column, column < number)
        overlap = box_iou(
            rx0[None, :], ry0[None, :], rx1[None, :], ry1[None, :],
            cx0[:, None], cy0[:, None], cx1[:, None], cy1[:, None],
        )  # fmt: skip
        struck = (overlap > threshold) & (column[:, None] > row[None, :])
        if labels is not None:
            labels += group * number
            mine = tl.load(labels + row, mask=row < number, other=0)
            other = tl.load(labels + column, mask=column < number, other=0)
            struck &= mine[None, :] == other[:, None]
        bits = tl.sum(struck.to(tl.int32) << bit[:, None], axis=0)
        tl.store(mask + (group * number + row) * words + word, bits, mask=row < number)


@triton.jit(do_not_specialize=["number", "words"])
def _walk(mask, valid, kept, number, words, WORDS: tl.constexpr):
    """A program a group: the survivors among 32 boxes are found, then strike out what follows; and so on.

    What each step reads depends on no decision, so the next step's words are on their way while one is decided.
    """
    group = tl.program_id(0).to(tl.int64)
    mask += group * number * words
    valid += group * number
    kept += group * number
    word, bit = tl.arange(0, WORDS), tl.arange(0, 32)
    place = word[:, None] * 32 + bit[None, :]
    usable = tl.load(valid + place, mask=place < number, other=0).to(tl.int32)
    removed = ~tl.sum(usable << bit[None, :], axis=1)  # (WORDS,), what is not there from the start
    own, rows = _load_rows(mask, 0, number, words, WORDS)
    for step in range(0, words):
        next_own, next_rows = _load_rows(mask, step + 1, number, words, WORDS)
        alive = ~tl.sum(tl.where(word == step, removed, 0), axis=0)
        survivors = _survivors(alive, own)
        survives = (survivors >> bit) & 1
        tl.store(kept + step * 32 + bit, survives, mask=step * 32 + bit < number)
        removed |= tl.reduce(tl.where(survives[:, None] != 0, rows, 0), 0, _or)
        own, rows = next_own, next_rows


@triton.jit
def _load_rows(mask, step, number, words, WORDS: tl.constexpr):
    """Of the 32 rows of a step their bits within the step (32,), and the words after it (32, WORDS)."""
    row, word = step * 32 + tl.arange(0, 32), tl.arange(0, WORDS)
    inside = row < number
    own = tl.load(mask + row.to(tl.int64) * words + step, mask=inside, other=0)
    after = inside[:, None] & (word > step)[None, :] & (word < words)[None, :]
    return own, tl.load(mask + row.to(tl.int64)[:, None] * words + word[None, :], mask=after, other=0)


@triton.jit
def _survivors(alive, own):
    """The survivors among 32 boxes as bits, from those that are `alive` and whom each strikes out.

    Repeats "alive, and struck out by no survivor" until it holds still: bit i is right after at most i rounds, in practice
    after a few.
    """
    survivors = alive
    again = alive & ~_struck(survivors, own)
    while again != survivors:
        survivors = again
        again = alive & ~_struck(survivors, own)
    return survivors


@triton.jit
def _struck(survivors, own):
    bit = tl.arange(0, 32)
    return tl.reduce(tl.where(((survivors >> bit) & 1) != 0, own, 0), 0, _or)


@triton.jit
def _or(a, b):
    return a | b
