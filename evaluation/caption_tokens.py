r"""Words of a caption as COCO's caption evaluation has them: Penn Treebank tokens, in lower case, without punctuation.

The rules are the Penn Treebank's (https://www.cis.upenn.edu/~bies/manuals/tokenize.pdf): clitics are split off ("man's"
is man 's, "can't" is ca n't, "cannot" is can not), numbers, abbreviations and words with inner hyphens stay whole. The
reference is what pycocoevalcap's `PTBTokenizer` does: Stanford's PTBTokenizer 3.4.1 with -lowerCase, then without the
marks of `PUNCTUATION`. It is followed in its oddities, for else scores differ: a bracket is no punctuation but a token
(-lrb-, -rrb-), and so are runs such as "!!"; a pound sign becomes #, a euro sign $.

Its words and ours are the same on all of Flickr8k's sentences. Known deviations:

- A sentence is tokenised by itself. The reference looks past the line's end: whether the full stop in "plan b." belongs
  to the abbreviation depends there on the next caption's first word; here it never does.
- Emoji and letters outside Unicode's first plane are tokens; the reference drops them.
- Letters come composed (NFC), so that two spellings of "café" are one word.
- Smileys are no tokens: ":)" is -rrb- here and :-rrb- there. Foreign and colloquial elisions beyond those below, file
  names, telephone numbers and apostrophes after hyphens may be split in other places.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

PUNCTUATION = frozenset("'\"`.?!,:;-")


def caption_tokens(sentence: str) -> list[str]:
    """The words of a sentence: lower case, clitics split, without punctuation; none of a sentence of punctuation alone.

    Example:
        >>> caption_tokens("A man's dog can't jump, or won't.")
        ['a', 'man', "'s", 'dog', 'ca', "n't", 'jump', 'or', 'wo', "n't"]
    """
    if not sentence.isascii():
        sentence = unicodedata.normalize("NFC", sentence).translate(_SPELLINGS)
    words: list[str] = []
    pieces = sentence.split()
    for place, piece in enumerate(pieces):
        if len(piece) < 5 and _OPEN.fullmatch(piece):
            following = pieces[place + 1] if place + 1 < len(pieces) else ""
            words.append(piece.lower() if _keeps_stop(piece, following) else piece[:-1].lower())
        else:
            words += _split(piece)
    return words


@lru_cache(maxsize=1 << 16)  # captions repeat their words: all but a few per cent of the pieces are known
def _split(piece: str) -> tuple[str, ...]:
    """The words of a piece without white space in it."""
    words = [_NAMES.get(token) or token.lower() for token in _TOKEN.findall(piece)]
    return tuple(word for word in words if word not in PUNCTUATION)


_OPEN = re.compile(r"(?i:[a-z]|nos?)\.")  # pieces of which the next one says whether the full stop is theirs


def _keeps_stop(piece: str, following: str) -> bool:
    """Whether "B." is an initial and "no." a number's, rather than a sentence's end."""
    if len(piece) > 2:
        return following[:1].isdigit()
    return following != "" and not _STARTER.fullmatch(following)


# Characters that the Treebank spells in ASCII. Quotation marks end up as punctuation whichever way they face.
_SPELLINGS = str.maketrans({
    "\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"', "«": '"', "»": '"',
    "\u2026": " . ", "\u2013": " - ", "\u2014": " - ",
    "£": " # ", "€": " $ ", "¢": " cents ", "½": " 1/2 ", "¼": " 1/4 ", "¾": " 3/4 ",
    "\u00ad": "", "\u200b": " ", "\ufeff": "", "\ufe0f": "",
})  # fmt: skip
_NAMES = {
    "(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-",
    "&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": '"', "&apos;": "'",
}  # fmt: skip

# Titles, places, firms, months and the like whose full stop is theirs, wherever they stand.
_ABBREVIATIONS = (
    r"mr|mrs|ms|messrs|dr|drs|prof|profs|rev|hon|jr|sr|bros|esq|gov|gen|maj|col|capt|cmdr|comdr|adm|lt|lieut|sgt|"
    r"cpl|pvt|sen|sens|rep|reps|pres|supt|det|insp|atty|asst|assn|st|mt|ft|ave|blvd|rd|sq|bldg|dept|univ|co|cos|"
    r"corp|ltd|inc|plc|mfg|intl|natl|jan|feb|mar|apr|jun|jul|aug|sep|sept|oct|nov|dec|mon|tue|tues|wed|thu|thurs|"
    r"fri|ala|ariz|calif|colo|conn|fla|ga|ind|kan|ky|md|mich|minn|mont|neb|nev|okla|penn|tenn|va|vt|wis|wyo|etc|"
    r"est|tel|vs|al|cf|adj|adv|mme|mlle|msgr|ph\.d"
)
# Those that are words, too, unless they are written with a capital.
_CAPITALISED = "Ark|Del|Ill|La|Mass|Miss|Mo|Ore|Pa|Tex|Wash"
# Words that begin sentences: the full stop of a letter before them ends the sentence before.
_STARTER = re.compile(
    "A|After|All|Also|An|And|Another|Are|As|At|Because|Both|But|By|Each|Every|For|From|He|Her|His|How|However|I|"
    "If|In|It|Its|Many|More|Most|My|No|Not|Of|On|One|Or|Other|Our|Several|She|Since|So|Some|Such|That|The|Their|"
    "Then|There|These|They|This|Those|To|Two|We|Were|What|When|Where|While|Who|Why|With|You|Your"
)

# A letter or digit of any script, and the marks that belong to one: neither space, nor ASCII's or Unicode's punctuation.
_OTHERS = (
    r"\x00-\x20!-/:-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u2000-\u200b\u2010-\u206f\u2070-\u2bff"
    r"\u3000-\u3004\u3008-\u3020\u3030\u30fb\ufe10-\ufe1f\ufe30-\ufe6f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40"
    r"\uff5b-\uff65\u0964\u0965\U0001f000-\U0001faff"
)
_LETTER = rf"[^{_OTHERS}0-9]"
_ALNUM = rf"[^{_OTHERS}]"
_CLITIC = r"(?i:'(?:s|m|d|ll|re|ve)(?!\w))"
_NOT = r"(?i:n't(?!\w))"
# A word up to its clitic: each letter only where no n't begins, hence "ca n't".
_WORD = rf"(?:(?!{_NOT}){_ALNUM})+"

_TOKEN = re.compile(
    "|".join([
        r"(?:https?://|www\.)[^\s<>\"]*[^\s<>\".,;:!?')\]}]",
        r"[\w.+-]+@\w[\w-]*(?:\.\w+)+",
        r"</?[A-Za-z][^<>]*>",
        r"&(?:amp|lt|gt|quot|apos);",
        # Clitics, and words that lost their beginnings.
        _CLITIC,
        _NOT,
        r"(?i:'(?:t(?=is\b|was\b)|em\b|til\b|cause\b|n'|n\b|\d0s))",
        # Two words written as one.
        r"(?i:\b(?:can(?=not\b)|gon(?=na\b)|wan(?=na\b)|got(?=ta\b)|gim(?=me\b)|lem(?=me\b)))",
        r"(?i:\by'(?=[a-z]))",
        # Numbers, with a sign, with separators within.
        r"(?<![\w.])[-+]?(?:\d+(?:[.,:/-]\d+)*|(?:\.\d+)+)(?!\w|[.,:/-]\w)",
        r"\d+:\d\d(?=[ap]m\b)",
        # Abbreviations, initials and acronyms.
        rf"(?i:\b(?:{_ABBREVIATIONS})\.(?!\w))",
        rf"\b(?:{_CAPITALISED})\.(?!\w)",
        r"(?i:\bnos?\.(?=\d))",
        rf"\b[A-Za-z](?:\.[A-Za-z])+(?:\.|\b)(?:-{_WORD})?(?!\w)",
        r"\b[A-Z]+&[A-Z]+\b",
        # Words: with an elided article before them, with hyphens, slashes or a sentence's end without a space within.
        rf"(?i:\b(?:[dlo]|qu)'(?={_LETTER}{{2}}))?{_WORD}(?:[-/_]{_WORD}|[.!?](?={_LETTER}){_WORD}|'(?i:clock|am|er)\b)*",
        r"[#@](?=[^\W\d_])\w+",
        r"-{5,}|[?!]{2,}|_+",  # which are kept; other punctuation falls away mark by mark
        r"\S",
    ])
)  # fmt: skip
