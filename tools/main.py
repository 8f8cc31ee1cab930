"""The command `sightline`: hands over to one of the tools, and turns users' errors into one line."""

from __future__ import annotations

import difflib
import importlib
import logging
import os
import sys
import warnings

from sightline import __version__

# OpenMP's threads otherwise spin while they wait: beside one other busy process on two cores, training a small network on the
# CPU was measured eight times slower. It must be set before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

TOOLS = {
    "train": "train a detector, classifier, localizer, segmenter or captioner, on your pictures or the built-in shapes",
    "evaluate": "score a checkpoint on data, or predictions in files against any truth",
    "predict": "find, name, outline or describe what is in images, folders, videos or a camera",
    "benchmark": "accuracy and speed of several models in one table",
    "check": "everything wrong with a data set, with file names and fixes",
    "convert": "a data set in another format",
    "propose": "boxes that may hold objects, for Fast R-CNN, and how many objects they cover",
    "export": "a trained model as one graph in a file: ONNX, or torch.export's",
    "inspect": "a model's layers, a data set's contents, what a network looks at",
}
MODULES = {"inspect": "inspect_"}  # of another name than the command: Python has an `inspect` of its own


def main(argv: list[str] | None = None) -> int:
    """Runs `sightline TOOL …`; returns the exit code: 0, 1 for a negative answer, 2 for a mistake in what was asked."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(_usage())
        return 0
    if argv[0] == "--version":
        print(f"sightline {__version__}")
        return 0
    if argv[0] not in TOOLS:
        close = difflib.get_close_matches(argv[0], TOOLS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        print(f"sightline: no command {argv[0]!r}{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    return run(argv[0], argv[1:])


def run(tool: str, argv: list[str]) -> int:
    """Runs one tool. What a person can mend is printed as one message; a fault of ours keeps its traceback."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    logging.getLogger("sightline").addHandler(handler)
    _quiet()
    try:
        return importlib.import_module(f"sightline.tools.{MODULES.get(tool, tool)}").main(argv) or 0
    except (ValueError, OSError) as error:  # DataError, WeightsError and TrainingError are ValueErrors
        told: BaseException | None = error
        while told is not None and not _ours(told):
            told = told.__cause__  # jsonargparse wraps what the constructors of options say in a list of types
        if told is None:
            raise
        named = isinstance(told, OSError) and told.filename is not None
        print(f"sightline {tool}: {f'{told.filename}: {told.strerror}' if named else told}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nsightline {tool}: stopped", file=sys.stderr)
        return 130


def _ours(error: BaseException) -> bool:
    """Whether the message was written for people: raised by Sightline's own code, not deep inside a library."""
    traceback = error.__traceback__
    while traceback and traceback.tb_next:
        traceback = traceback.tb_next
    name = traceback.tb_frame.f_globals.get("__name__", "") if traceback else ""
    return isinstance(error, OSError) or name.split(".")[0] in ("sightline", "__main__")


def _quiet() -> None:
    """Silences libraries' advice that no user of a command can act on."""
    for message in (
        ".*does not have many workers.*",
        ".*exists and is not empty.*",
        ".*smaller than the logging interval.*",
        ".*`isinstance\\(treespec, LeafSpec\\)`.*",
        ".*is deprecated.*",
    ):
        warnings.filterwarnings("ignore", message=message)
    # On a machine that has CUDA's compiler and no GPU, whenever something is compiled.
    compiling = logging.getLogger("torch.utils.cpp_extension")
    compiling.addFilter(lambda record: "No CUDA runtime is found" not in record.getMessage())
    tips = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    tips.addFilter(lambda record: "Tip:" not in record.getMessage())  # advertisements of other products


def _usage() -> str:
    tools = "\n".join(f"    {name:<10} {text}" for name, text in TOOLS.items())
    return f"usage: sightline TOOL …\n\n{tools}\n\n`sightline TOOL --help` shows a tool's options."


if __name__ == "__main__":
    sys.exit(main())
