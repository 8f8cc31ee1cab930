"""What a report says of captions: their scores, how these and the lengths are spread, the best and the worst pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

import numpy as np
from PIL import Image

from .caption_plots import plot_caption_scores, plot_caption_words
from .caption_tokens import caption_tokens
from .captions import CaptionResult
from .page import ReportInputs, cards, heading, image, percent, table, training, write_page

SHOWN = 512  # pixels: the longer side of a picture in the page, at most


def write_caption_report(folder: str | Path, result: CaptionResult, inputs: ReportInputs | None = None) -> Path:
    """Writes report.html, and its charts and pictures into report/.

    Args:
        folder: made if missing; an older report there is replaced.
        result: of `evaluate_captions`.
        inputs: title, pictures and the like; `load_image` and `image_names` go by the result's order of pictures.

    Returns:
        The path of report.html.

    Raises:
        DataError: the metrics file cannot be read.
    """
    folder, inputs = Path(folder), inputs or ReportInputs()
    drawings = folder / "report"
    drawings.mkdir(parents=True, exist_ok=True)
    said = [caption_tokens(caption) for caption in result.captions]
    counts = (
        f"{len(result.captions):,} images, {sum(map(len, result.references)):,} references, "
        f"{len(set(map(tuple, said))):,} different captions of {len(set().union(*said)):,} different words"
    )
    sections = [
        heading(inputs, counts), _headline(result), _charts(drawings, result), training(inputs, drawings),
        *_Captions(drawings, result, inputs).sections(),
    ]  # fmt: skip
    return write_page(folder, inputs.title, sections)


def _headline(result: CaptionResult) -> str:
    summary, unpenalised = result.summary(), result.unpenalised()
    large = {"BLEU-4": percent(summary["BLEU-4"]), "CIDEr-D": f"{summary['CIDEr-D']:.3f}"}
    large |= {"ROUGE-L": percent(summary["ROUGE-L"]), "captions that are a reference": percent(summary["exact"])}
    rows = [
        ["BLEU-1 to 4", *(percent(summary[name]) for name in unpenalised)],
        ["without brevity penalty", *map(percent, unpenalised.values())],
    ]
    others = (
        f"CIDEr {summary['CIDEr']:.3f}. BLEU, ROUGE-L and captions that are a reference in percent; CIDEr from 0 to 10."
    )
    return f"{cards(large)}{table(('', *unpenalised), rows)}<p class=note>{others}</p>"


def _charts(folder: Path, result: CaptionResult) -> str:
    scores, words = folder / "caption_scores.png", folder / "caption_words.png"
    plot_caption_scores(result, scores)
    plot_caption_words(result, words)
    return f"<h2>Spread</h2><div class=pair>{image(scores)}{image(words)}</div>"


@dataclass
class _Captions:
    """Pictures with what was said about them.

    Attributes:
        folder: where the pictures are written.
        result: the captions and their scores.
        inputs: how pictures are loaded, called, and how many are shown of a kind.
    """

    folder: Path
    result: CaptionResult
    inputs: ReportInputs

    def sections(self) -> list[str]:
        """The best, the middle and the worst captions by CIDEr-D, no picture twice."""
        order = np.lexsort((-self.result.bleu[:, -1], -self.result.cider_d)).tolist()
        count = self.inputs.pictures
        middle = max(0, (len(order) - count) // 2)
        kinds = {
            "The best captions": order[:count],
            "Captions of the middle": order[middle : middle + count],
            "The worst captions": order[::-1][:count],
        }
        sections, shown = [], set()
        for title, rows in kinds.items():
            fresh = [row for row in rows if row not in shown]
            shown |= set(fresh)
            sections.append(f"<h2>{title}</h2>{''.join(map(self.figure, fresh))}" if fresh else "")
        return sections

    def figure(self, row: int) -> str:
        """One picture, its caption, and the sentences it was scored against."""
        references = "".join(f"<li>{escape(sentence)}</li>" for sentence in self.result.references[row])
        scores = f"CIDEr-D {self.result.cider_d[row]:.2f}, BLEU-4 {percent(self.result.bleu[row, -1])}"
        caption = escape(self.result.captions[row]) or "(nothing)"
        text = f"<div><p>{caption}</p><ul>{references}</ul><figcaption>{self.name(row)}: {scores}</figcaption></div>"
        return f"<figure class=said>{self.picture(row)}{text}</figure>"

    def picture(self, row: int) -> str:
        """The picture, or what is wrong with its file; nothing where there are none."""
        if self.inputs.load_image is None:
            return "<div></div>"
        try:
            pixels = Image.fromarray(self.inputs.load_image(row))
        except (OSError, ValueError) as error:
            return f"<p class=note>cannot be read: {escape(str(error))}</p>"
        pixels.thumbnail((SHOWN, SHOWN))
        path = self.folder / f"image_{self.result.image_ids[row]}.jpg"
        pixels.save(path, quality=88)
        return f"<div>{image(path)}</div>"

    def name(self, row: int) -> str:
        """What a picture is called, as HTML."""
        names: Sequence[int | str] = self.inputs.image_names or self.result.image_ids
        return escape(str(names[row]))
