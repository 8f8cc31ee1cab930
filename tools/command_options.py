"""The parser of the commands other than `sightline train`, whose options are many and nested."""

from __future__ import annotations

import argparse
import re
from typing import NoReturn

from sightline.datasets.table import nearest


class OptionsParser(argparse.ArgumentParser):
    """Says in one line what is wrong, with the nearest option where one is mistyped, and leaves the usage to --help."""

    def error(self, message: str) -> NoReturn:
        """Ends the command with exit code 2."""
        unknown = re.findall(r"(?<!\S)--[\w-]+", message) if message.startswith("unrecognized") else []
        hints = "".join(nearest(option, self._option_string_actions) for option in unknown)
        self.exit(2, f"{self.prog}: {message}{hints}; see {self.prog} --help\n")
