"""What every `sightline predict` does: one picture after the other, with a progress bar, until the end or Ctrl-C."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tqdm import tqdm

from sightline.datasets.sources import Frame, Frames
from sightline.datasets.table import counted


@dataclass
class Course:
    """How a run went.

    Attributes:
        pictures: how many were looked at.
        seconds: reading them, looking at them and writing.
        stopped: whether Ctrl-C ended it.
    """

    pictures: int = 0
    seconds: float = 0.0
    stopped: bool = False

    def summary(self, found: str = "") -> str:
        """In one line, with what was found."""
        rate = self.pictures / max(self.seconds, 1e-9)
        done = f"{counted(self.pictures, 'picture')}, {found}in {self.seconds:.1f} s ({rate:.1f} pictures a second)"
        return f"stopped after {done}" if self.stopped else done


def each_picture(pictures: Frames, turn: Callable[[int, Frame], dict[str, int]], course: Course) -> None:
    """Takes pictures one at a time, so that memory stays the same however many there are.

    Args:
        pictures: where they come from.
        turn: what is done with each, given its running number from 1; it returns what the progress bar shows.
        course: filled in as it goes.
    """
    started = time.perf_counter()
    with stoppable() as stop, tqdm(total=pictures.total, unit=" pictures", disable=None) as bar:
        for number, frame in enumerate(pictures, 1):
            bar.set_postfix(turn(number, frame), refresh=False)
            course.pictures = number
            bar.update()
            course.stopped = stop.is_set()
            if course.stopped:
                break
    course.seconds = time.perf_counter() - started


@contextmanager
def stoppable() -> Iterator[threading.Event]:
    """An event that Ctrl-C sets, so that the picture in work is finished and written; a second Ctrl-C ends at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():  # signals are the main thread's
        yield stop
        return

    def ask(*_: object) -> None:
        stop.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield stop
    finally:
        signal.signal(signal.SIGINT, before)
