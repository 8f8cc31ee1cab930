"""What the numbers and colours of masks stand for: categories, void, or nothing known.

Void is 255 where no category has that number, Pascal VOC's (224, 224, 192) where none has that colour, and whatever a file
of categories calls void, ignore, unlabelled or unlabeled.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from tqdm import tqdm

from .label_files import VOID, VOID_COLOUR, Colour, Mask, read_mask
from .table import DataError

UNKNOWN = -2  # what is neither a category nor void
_VOID_NAMES = frozenset({"void", "ignore", "unlabelled", "unlabeled"})


@dataclass(frozen=True)
class Legend:
    """From what stands in mask files to labels.

    Attributes:
        categories: C names.
        colours: C colours to draw them in; None where none are known.
        numbers: from a number in a mask to its label, -1 for void.
        shades: from a colour in a mask to its label, -1 for void; empty where masks are numbered.
    """

    categories: tuple[str, ...]
    colours: tuple[Colour, ...] | None
    numbers: dict[int, int]
    shades: dict[Colour, int]

    @classmethod
    def of(cls, names: Sequence[str], colours: Sequence[Colour] | None = None, *, coded: bool = True) -> Legend:
        """Of categories numbered from 0, of which some may be called void and are none then.

        Args:
            names: in the order of their numbers.
            colours: as many, or None.
            coded: masks may be drawn in these colours; else they are only known to be pretty.
        """
        void = [is_void(name) for name in names]
        labels = [-1 if nothing else number - sum(void[:number]) for number, nothing in enumerate(void)]
        numbers = {VOID: -1} | dict(enumerate(labels))
        shades = {VOID_COLOUR: -1} | dict(zip(colours, labels, strict=True)) if colours and coded else {}
        kept = [number for number, label in enumerate(labels) if label >= 0]
        chosen = tuple(colours[number] for number in kept) if colours else None
        return cls(tuple(names[number] for number in kept), chosen, numbers, shades)

    def labels(self, mask: Mask, path: str) -> np.ndarray:
        """The label map of a mask: (H, W) int16, -1 for void.

        A palette counts by its colours where masks may be drawn in the categories' colours, else by its numbers; 255 is void.

        Raises:
            DataError: a pixel is of no category; the message names its value, its place and `path`.
        """
        if mask.values.ndim == 3:
            labels = self._of_colours(mask.values)
        elif mask.palette is not None and self.shades:
            table = self._of_colours(mask.palette[None])[0]
            table[VOID] = self._by_number[VOID]
            labels = table[mask.values]
        else:
            labels = self._by_number[mask.values]
        if labels.size and labels.min() == UNKNOWN:
            raise DataError(f"{path}: {self._complaint(mask, labels)}")
        return labels

    def _of_colours(self, values: np.ndarray) -> np.ndarray:
        """(H, W) int16 from (H, W, 3) uint8."""
        known, labels = self._by_colour
        packed = _packed(values)
        at = np.searchsorted(known, packed)
        return np.where(known[at] == packed, labels[at], np.int16(UNKNOWN))

    @cached_property
    def _by_number(self) -> np.ndarray:
        """(256,) int16."""
        return np.array([self.numbers.get(number, UNKNOWN) for number in range(256)], np.int16)

    @cached_property
    def _by_colour(self) -> tuple[np.ndarray, np.ndarray]:
        """Known colours in one number each, ascending, and their labels; behind them one that no colour is."""
        pairs = sorted((_pack(*colour), label) for colour, label in self.shades.items())
        known, labels = zip(*pairs, (1 << 24, UNKNOWN), strict=True)
        return np.array(known, np.int32), np.array(labels, np.int16)

    def _complaint(self, mask: Mask, labels: np.ndarray) -> str:
        row, column = np.argwhere(labels == UNKNOWN)[0].tolist()
        value, count = mask.values[row, column], int((labels == UNKNOWN).sum())
        if mask.values.ndim == 2 and mask.palette is not None and self.shades:
            value = mask.palette[value]
        shown = f"colour {tuple(value.tolist())}" if value.shape else f"value {value}"
        where = f"{shown} at row {row}, column {column} (from 0; {count} such pixels in all) names no category"
        return f"{where}; {self._known(bool(value.shape))}"

    def _known(self, coloured: bool) -> str:
        if coloured and not self.shades:
            return "no file says what colours stand for: write categories.csv with lines name,r,g,b beside the masks"
        known = self.shades if coloured else self.numbers
        shown = ", ".join(map(str, sorted(value for value, label in known.items() if label >= 0)[:12]))
        void = ", ".join(map(str, sorted(value for value, label in known.items() if label < 0)))
        more = f", … {len(self.categories)} in all" if len(self.categories) > 12 else ""
        return f"known are {shown}{more}, and {void} for void: correct the mask, or name its category"


def is_void(name: str) -> bool:
    """Whether what is called so is no category."""
    return name.lower() in _VOID_NAMES


def _pack(red: int, green: int, blue: int) -> int:
    return red << 16 | green << 8 | blue


def _packed(values: np.ndarray) -> np.ndarray:
    """(H, W) int32, one number for each colour of (H, W, 3) uint8."""
    red, green, blue = (values[..., channel].astype(np.int32) for channel in range(3))
    return red << 16 | green << 8 | blue


def found_legend(paths: Iterable[str], where: str) -> Legend:
    """Categories numbered by what stands in all of these masks, which are all read; ones that cannot be are passed over.

    Numbers are named "0", "7", ..., colours "#ff0000", .... Void is 255, unless nothing else but 0 is found.

    Raises:
        DataError: numbers here and colours there, more than 255 different ones, or none.
    """
    paths = list(paths)
    with ThreadPoolExecutor(8) as pool:
        found = list(tqdm(pool.map(_contents, paths), "reading masks", len(paths), unit="mask", leave=False))
    refused = next((one["error"] for one in found if "error" in one), None)
    numbers, colours = ({value for one in found for value in one.get(kind, ())} for kind in ("numbers", "colours"))
    palettes = {value: colour for one in reversed(found) for value, colour in one.get("palette", {}).items()}
    if numbers and colours:
        raise DataError(f"{where}: some masks hold numbers and some colours; name the categories in a categories.csv")
    if len(colours) > VOID:
        raise DataError(f"{where}: more than {VOID} colours in the masks: these are pictures, or were saved with loss")
    if not numbers - {VOID} and not colours - {VOID_COLOUR}:
        first = f"; one that cannot is {refused}" if refused else ""
        raise DataError(f"{where}: no mask that can be read has any category in it{first}")
    if colours:
        shown = sorted(colours - {VOID_COLOUR})
        return Legend.of([f"#{_pack(*colour):06x}" for colour in shown], shown)
    chosen = sorted(numbers if numbers == {0, VOID} else numbers - {VOID})
    shown = tuple(palettes[number] for number in chosen) if numbers <= palettes.keys() else None
    return Legend(tuple(map(str, chosen)), shown, {VOID: -1} | {value: k for k, value in enumerate(chosen)}, {})


def _contents(path: str) -> dict:
    """The numbers, with their palette, or the colours of a mask; an error where it cannot be read."""
    try:
        mask = read_mask(path)
    except DataError as error:
        return {"error": str(error)}
    if mask.values.ndim == 3:
        packed = np.unique(_packed(mask.values))[: VOID + 2].tolist()
        return {"colours": {(one >> 16, one >> 8 & 255, one & 255) for one in packed}}
    numbers = np.flatnonzero(np.bincount(mask.values.ravel(), minlength=256)).tolist()
    if mask.palette is None:
        return {"numbers": numbers}
    return {"numbers": numbers, "palette": {number: tuple(mask.palette[number].tolist()) for number in numbers}}
