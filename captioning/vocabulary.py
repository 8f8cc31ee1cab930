"""Sentences to numbers of words and back: the words a captioner knows.

A word is a run of letters, marks and digits of any script, with single apostrophes and hyphens between them; all else is
dropped. Scripts that put no spaces between words (Chinese, Japanese, Thai, Lao, Khmer, Burmese) are taken letter by letter,
each with its marks, whether or not somebody has put spaces there: to tell their words takes a dictionary.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import pairwise

from ..datasets.table import DataError
from .decoder import END, PAD, UNKNOWN

SPECIAL = ("<pad>", "<start>", "<end>", "<unknown>")  # PAD, START, END, UNKNOWN


class Vocabulary:
    """The words a captioner knows, by number; the first four are `SPECIAL`.

    Args:
        words: V different ones.

    Raises:
        ValueError: the special words are not the first, or a word stands twice.
    """

    def __init__(self, words: Sequence[str]) -> None:
        if tuple(words[: len(SPECIAL)]) != SPECIAL:
            raise ValueError(f"a vocabulary begins with {', '.join(SPECIAL)}, got {', '.join(map(str, words[:4]))}")
        self.words = list(words)
        self._number = {word: number for number, word in enumerate(words)}
        if len(self._number) != len(words):
            raise ValueError(f"a word stands twice in the vocabulary: {Counter(words).most_common(1)[0][0]!r}")

    @staticmethod
    def of(sentences: Iterable[str], min_count: int = 5) -> Vocabulary:
        """The words that stand in sentences at least so often, the commonest first, equally common ones by the alphabet.

        Raises:
            DataError: no word stands there so often.
            ValueError: min_count is less than 1.
        """
        if min_count < 1:
            raise ValueError(f"min_count must be at least 1, got {min_count}")
        counts = Counter(word for sentence in sentences for word in split(sentence))
        kept = sorted((word for word, count in counts.items() if count >= min_count), key=lambda w: (-counts[w], w))
        if not kept:
            raise DataError(_no_words(counts, min_count))
        return Vocabulary([*SPECIAL, *kept])

    @staticmethod
    def numbers(count: int) -> Vocabulary:
        """Stands in until the words are known: `count` words, "word 4" and so on."""
        return Vocabulary([*SPECIAL, *(f"word {i}" for i in range(len(SPECIAL), count))])

    def __len__(self) -> int:
        return len(self.words)

    def encode(self, sentence: str) -> list[int]:
        """The numbers of a sentence's words, UNKNOWN for those not known, and END behind them."""
        return [*(self._number.get(word, UNKNOWN) for word in split(sentence)), END]

    def decode(self, tokens: Iterable[int]) -> str:
        """The words up to END, with spaces between them; without, where both sides are of a script that puts none."""
        said = []
        for token in tokens:
            if token in (END, PAD):
                break
            said.append(self.words[token])
        return "".join([*said[:1], *(_gap(one, other) + other for one, other in pairwise(said))])


def _no_words(counts: Counter[str], min_count: int) -> str:
    if not counts:
        return "no vocabulary: there is not one word in the sentences"
    ((word, count),) = counts.most_common(1)
    return (
        f"no vocabulary: no word stands {min_count} times in the sentences, the commonest, {word!r}, {count} times: set "
        f"--data.min_count {count} or less, or give more sentences"
    )


def _gap(one: str, other: str) -> str:
    return "" if (one[:1] + other[:1]).translate(_KINDS) == "UU" else " "


# -- Splitting --


def split(sentence: str) -> list[str]:
    """The words of a sentence, in lower case (not folded: words are also said, and ß is not ss), letters composed (NFC)."""
    sentence = unicodedata.normalize("NFC", sentence.translate(_ALIKE).lower())
    kinds = sentence.translate(_KINDS)
    return [sentence[slice(*found.span())] for found in _WORD.finditer(kinds)]


class _Alike(dict[int, str | None]):
    """Characters by which one thing is written in several ways to one of them, for `str.translate`; invisible ones to none."""

    def __missing__(self, code: int) -> str | None:
        letter = chr(code)
        invisible = unicodedata.category(letter) == "Cf" or "VARIATION SELECTOR" in unicodedata.name(letter, "")
        self[code] = None if invisible else letter
        return self[code]


class _Kinds(dict[int, str]):
    """Characters to their kinds, for `str.translate`.

    L letter or digit, U one of a script without spaces, M mark upon a letter, J joins two parts of a word, " " is of no word.
    """

    def __missing__(self, code: int) -> str:
        self[code] = self._kind(chr(code))
        return self[code]

    @staticmethod
    def _kind(letter: str) -> str:
        category = unicodedata.category(letter)
        if category[0] in "LN":
            return "U" if unicodedata.name(letter, "").startswith(_UNSPACED) else "L"
        return "M" if category in ("Mn", "Mc") else " "


# By the first words of the letters' names, which Unicode never changes: Python does not know their scripts.
_UNSPACED = (
    "CJK ", "IDEOGRAPHIC ", "HIRAGANA ", "KATAKANA", "HALFWIDTH KATAKANA", "THAI ", "LAO ", "KHMER ", "MYANMAR ",
)  # fmt: skip
_JOINERS = "\u200c\u200d"  # stand within words of Persian and of India's languages
_ALIKE = _Alike({ord(sign): "'" for sign in "\u2018\u2019\u02bc\uff07"})
_ALIKE.update({ord(sign): "-" for sign in "\u2010\u2011"} | {ord(sign): sign for sign in _JOINERS})
_ALIKE[0x200B] = " "  # parts words, if without a gap
_KINDS = _Kinds({ord(sign): "J" for sign in "'-" + _JOINERS})
_WORD = re.compile("UM*|L[LM]*(?:JL[LM]*)*")
