"""Scores of captions against sentences people wrote: BLEU-1 to 4, ROUGE-L, CIDEr and CIDEr-D, and how many are exact.

- BLEU (Papineni et al. 2002, https://aclanthology.org/P02-1040), of the whole set, length by the closest reference. Without
  its brevity penalty, as some papers give it (Show, Attend and Tell, https://arxiv.org/abs/1502.03044, table 1), it is
  "unpenalised" here, and never smaller.
- ROUGE-L (Lin 2004, https://aclanthology.org/W04-1013), beta 1.2: best precision and best recall over the references.
- CIDEr and CIDEr-D (Vedantam et al. 2015, https://arxiv.org/abs/1411.5726), n-grams of 1 to 4 words, document
  frequencies from the references of the pictures scored; CIDEr-D clips counts and weighs lengths with sigma 6. Both are
  multiplied by ten, as everywhere; words are not stemmed.
- Exact: the share of captions that are one of their references, word by word. It means something where there is one right
  sentence for a picture, as for the built-in shapes.

The numbers are pycocoevalcap's (https://github.com/salaniz/pycocoevalcap), whose "CIDEr" is CIDEr-D, down to its smoothing
constants. One deviation: where a caption and a reference both have no word left, it gives ROUGE-L 1; here it is 0. METEOR
and SPICE are left out: they need WordNet, a table of paraphrases or a parser, which would have to be downloaded, and an
approximation under their names could not be compared with anything.

Letters: I pictures, R references of all of them, K rows of counts.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from .caption_ngrams import Counts, count_ngrams, look_up
from .caption_tokens import caption_tokens

ORDERS = 4
BETA = 1.2  # of ROUGE-L: how much more recall counts than precision
SIGMA = 6.0  # of CIDEr-D, in words
# pycocoevalcap's smoothing: no division by zero, and no BLEU of exactly 0.
_TINY, _SMALL = 1e-15, 1e-9


@dataclass(frozen=True)
class CaptionResult:
    """The scores of one caption for each of I pictures.

    Attributes:
        image_ids: I ids.
        captions: I sentences as they were given.
        references: I lists of sentences.
        correct: (I, 4) int64, n-grams of the caption that a reference has, each as often as it has it at most.
        guessed: (I, 4) int64, n-grams of the caption.
        lengths: (I, 2) int64, words of the caption and of the reference nearest in length.
        rouge_l: (I,) float64 in [0, 1].
        cider: (I,) float64 in [0, 10].
        cider_d: (I,) float64 in [0, 10].
        exact: (I,) bool, whether the caption's words are those of a reference, in their order; of no words, False.
    """

    image_ids: list[int | str]
    captions: list[str]
    references: list[list[str]]
    correct: np.ndarray
    guessed: np.ndarray
    lengths: np.ndarray
    rouge_l: np.ndarray
    cider: np.ndarray
    cider_d: np.ndarray
    exact: np.ndarray

    def summary(self) -> dict[str, float]:
        """BLEU-1 to BLEU-4, ROUGE-L, CIDEr, CIDEr-D and exact of the set: BLEU from its counts, the others as means."""
        bleu = _bleu(self.correct.sum(0), self.guessed.sum(0), self.lengths.sum(0))
        return _by_order(bleu) | {name: float(values.mean()) for name, values in self._means().items()}

    def unpenalised(self) -> dict[str, float]:
        """BLEU-1 to BLEU-4 of the set without the brevity penalty: the geometric means of precisions alone."""
        return _by_order(_precision_means(self.correct.sum(0), self.guessed.sum(0)))

    @cached_property
    def bleu(self) -> np.ndarray:
        """(I, 4) float64 in [0, 1]: BLEU-1 to 4 of each picture alone."""
        return _bleu(self.correct, self.guessed, self.lengths)

    def per_image(self) -> list[dict]:
        """One record a picture, the worst by CIDEr-D first, then by BLEU-4: image_id, caption, references, scores."""
        return [self._record(row) for row in self._worst_first()]

    def table(self, worst: int = 10) -> str:
        """A line a score, BLEU beside its unpenalised value, and the worst captions with their first reference.

        Args:
            worst: how many captions are listed; 0 for none.
        """
        pictures = len(self.captions)
        counted = f"{pictures} captions, {sum(map(len, self.references))} references"
        beside = {name: f"{value:9.4f}" for name, value in self.unpenalised().items()}
        beside["BLEU-1"] += "  without brevity penalty"
        lines = [f"{name:<9}{value:7.4f}{beside.get(name, '')}" for name, value in self.summary().items()]
        lines.append(
            f"{counted}; {self.lengths[:, 0].mean():.1f} words a caption, references {self.lengths[:, 1].mean():.1f}"
        )
        if worst > 0:
            lines.append("\nworst captions by CIDEr-D (one of their references)")
        for row in self._worst_first()[:worst]:
            lines.append(f"{self.cider_d[row]:7.4f}  {self.image_ids[row]}: {_line(self.captions[row]) or '(nothing)'}")
            lines.append(f"{'':9}({_line(self.references[row][0])})")
        return "\n".join(lines)

    def to_dict(self) -> dict:
        """The summary, "BLEU-1 unpenalised" to 4, and every picture's scores, ready for json.dump."""
        unpenalised = {f"{name} unpenalised": value for name, value in self.unpenalised().items()}
        return {**self.summary(), **unpenalised, "per_image": self.per_image()}

    def _means(self) -> dict[str, np.ndarray]:
        """What is a mean over pictures, (I,) each."""
        return {"ROUGE-L": self.rouge_l, "CIDEr": self.cider, "CIDEr-D": self.cider_d, "exact": self.exact}

    def _worst_first(self) -> np.ndarray:
        return np.lexsort((self.bleu[:, -1], self.cider_d))

    def _record(self, row: int) -> dict:
        scores = _by_order(self.bleu[row]) | {name: values[row].item() for name, values in self._means().items()}
        said = {"caption": self.captions[row], "references": self.references[row]}
        return {"image_id": self.image_ids[row], **said, **scores}


def _by_order(bleu: np.ndarray) -> dict[str, float]:
    return {f"BLEU-{n}": float(value) for n, value in enumerate(bleu, 1)}


def _line(sentence: str) -> str:
    return " ".join(sentence.split())


def evaluate_captions(
    references: Mapping[int | str, Sequence[str]], captions: Mapping[int | str, str]
) -> CaptionResult:
    """Scores one caption a picture.

    Args:
        references: picture to its sentences, at least one each.
        captions: picture to its caption, for the same pictures; any text, split into words by `caption_tokens`.

    Raises:
        ValueError: no pictures, different ones in the two, or a picture without references.
    """
    _check(references, captions)
    ids = list(captions)
    sentences = [list(references[i]) for i in ids]
    owner = np.repeat(np.arange(len(ids)), [len(group) for group in sentences])
    candidates = [caption_tokens(captions[i]) for i in ids]
    truths = [caption_tokens(sentence) for group in sentences for sentence in group]
    counts = [order.split(len(ids)) for order in count_ngrams(candidates + truths, ORDERS)]
    lengths = np.array([len(words) for words in candidates], np.int64)
    true_lengths = np.array([len(words) for words in truths], np.int64)
    cider, cider_d = _cider(counts, owner, np.maximum(lengths[owner] - 1, 0) - np.maximum(true_lengths - 1, 0))
    return CaptionResult(
        image_ids=ids,
        captions=[captions[i] for i in ids],
        references=sentences,
        correct=np.stack([_correct(found, true, owner) for found, true in counts], axis=1),
        guessed=np.maximum(lengths[:, None] - np.arange(ORDERS), 0),
        lengths=np.stack([lengths, _closest(lengths, true_lengths, owner)], axis=1),
        rouge_l=_rouge_l(candidates, truths, owner),
        cider=cider,
        cider_d=cider_d,
        exact=_exact(candidates, truths, owner),
    )


def _check(references: Mapping, captions: Mapping) -> None:
    if not captions:
        raise ValueError("there are no captions to score")
    if references.keys() != captions.keys():
        odd = next(iter(references.keys() ^ captions.keys()))
        has, lacks = ("caption", "references") if odd in captions else ("references", "caption")
        raise ValueError(f"picture {odd!r} has {has} but no {lacks}; both must name the same pictures")
    for image, group in references.items():
        if isinstance(group, str) or not group:
            raise ValueError(f"picture {image!r}: references must be a list of at least one sentence, got {group!r}")


# -- BLEU --


def _bleu(correct: np.ndarray, guessed: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """(..., 4) BLEU-1 to 4 from counts (..., 4) and lengths (..., 2): geometric means of precisions, short ones punished."""
    ratio = (lengths[..., :1] + _TINY) / (lengths[..., 1:] + _SMALL)
    return _precision_means(correct, guessed) * np.exp(np.minimum(0, 1 - 1 / ratio))


def _precision_means(correct: np.ndarray, guessed: np.ndarray) -> np.ndarray:
    """(..., 4) geometric means of the precisions of 1 to 4 orders."""
    precisions = (correct + _TINY) / (guessed + _SMALL)
    return np.cumprod(precisions, axis=-1) ** (1 / np.arange(1, ORDERS + 1))


def _correct(found: Counts, true: Counts, owner: np.ndarray) -> np.ndarray:
    """(I,) n-grams of each caption, each counted as often as the reference that has it most often has it, at most."""
    keys = owner[true.sentence] * true.size + true.ngram
    order = np.lexsort((true.count, keys))
    last = np.flatnonzero(np.diff(keys[order], append=-1))  # of each n-gram of a picture: its largest count
    keys, most = keys[order][last], true.count[order][last]
    allowed = look_up(keys, most, found.sentence * found.size + found.ngram)
    images = owner[-1] + 1
    return np.bincount(found.sentence, np.minimum(found.count, allowed), minlength=images).astype(np.int64)


def _closest(lengths: np.ndarray, true_lengths: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """(I,) the length of each picture's reference that is nearest to the caption's, the shorter one of equals."""
    order = np.lexsort((true_lengths, np.abs(true_lengths - lengths[owner]), owner))
    return true_lengths[order][np.searchsorted(owner, np.arange(len(lengths)))]


# -- ROUGE-L --


def _rouge_l(candidates: list[list[str]], truths: list[list[str]], owner: np.ndarray) -> np.ndarray:
    """(I,) F-measure of each picture's best precision and best recall."""
    common = np.array([_common(candidates[i], words) for i, words in zip(owner.tolist(), truths, strict=True)])
    precision, recall = (
        np.array([value / max(len(words), 1) for value, words in zip(common.tolist(), sentences, strict=True)])
        for sentences in ([candidates[i] for i in owner], truths)
    )
    starts = np.searchsorted(owner, np.arange(len(candidates)))
    precision, recall = (np.maximum.reduceat(values, starts) for values in (precision, recall))
    total = recall + BETA**2 * precision
    return np.divide((1 + BETA**2) * precision * recall, total, out=np.zeros_like(total), where=total > 0)


def _common(first: Sequence[str], second: Iterable[str]) -> int:
    """The length of the longest common subsequence, a row of the table of lengths at a time (Crochemore et al. 2001).

    Bit i of `row` is 0 where the length grows at word i of `first`; adding carries each growth to the first word after
    it that matches.
    """
    places: dict[str, int] = {}
    for i, word in enumerate(first):
        places[word] = places.get(word, 0) | 1 << i
    everything = row = (1 << len(first)) - 1
    for word in second:
        matching = row & places.get(word, 0)
        row = (row + matching | row - matching) & everything
    return len(first) - row.bit_count()


# -- CIDEr --


def _cider(counts: list[tuple[Counts, Counts]], owner: np.ndarray, longer: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(I,) CIDEr and (I,) CIDEr-D: ten times the mean similarity over orders and references.

    Args:
        counts: for each order, of the captions and of the references.
        owner: (R,) each reference's picture, ascending.
        longer: (R,) by how many bigrams the caption is longer than the reference; the reference code's measure of length.
    """
    parts = np.array([_similarities(found, true, owner) for found, true in counts])  # (4, 2, R)
    plain, clipped = 10 * parts.mean(axis=0)
    penalty = np.exp(-(longer**2) / (2 * SIGMA**2))
    references = np.bincount(owner)
    return np.bincount(owner, plain) / references, np.bincount(owner, clipped * penalty) / references


def _similarities(found: Counts, true: Counts, owner: np.ndarray) -> np.ndarray:
    """(2, R): of one order, cosines between tf-idf vectors of each reference and its picture's caption; then clipped."""
    images, references = owner[-1] + 1, len(owner)
    documents = np.unique(owner[true.sentence] * true.size + true.ngram) % max(true.size, 1)
    frequency = np.bincount(documents, minlength=true.size)
    rarity = math.log(images) - np.log(np.maximum(frequency, 1))
    weight, true_weight = (side.count * rarity[side.ngram] for side in (found, true))
    matching = look_up(found.sentence * found.size + found.ngram, weight, owner[true.sentence] * true.size + true.ngram)
    norm = np.sqrt(np.bincount(found.sentence, weight**2, minlength=images))[owner]
    norms = norm * np.sqrt(np.bincount(true.sentence, true_weight**2, minlength=references))
    products = (matching * true_weight, np.minimum(matching, true_weight) * true_weight)
    dots = np.array([np.bincount(true.sentence, product, minlength=references) for product in products], np.float64)
    return np.divide(dots, norms, out=np.zeros_like(dots), where=norms > 0)


# -- Exact --


def _exact(candidates: list[list[str]], truths: list[list[str]], owner: np.ndarray) -> np.ndarray:
    """(I,) bool: whether a caption is one of its references."""
    same = [bool(words) and candidates[i] == words for i, words in zip(owner.tolist(), truths, strict=True)]
    return np.bincount(owner, same) > 0
