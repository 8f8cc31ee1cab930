"""`sightline inspect MODEL|DATA|CHECKPOINT`: what a model is made of, what a data set holds, what a network looks at.

sightline inspect vgg16                                         # layers: shapes, costs, receptive fields
sightline inspect googlenet_2014 --depth 1                      # a row for each stage
sightline inspect timm:convnext_tiny --size 288 384             # any network of timm's or torchvision's
sightline inspect vgg16 --activations --init small_random --png start.png
sightline inspect coco/ --png examples.png                      # counts, sizes and examples
sightline inspect fcn8s --size 360 480 --depth 1                # a segmenter's parts
sightline inspect camvid/ --png examples.png                    # pixels by category, pictures tinted by them
sightline inspect coco/ --statistics coco.npz --size 32         # mean, mean image, PCA and whitening, for later
sightline inspect best.ckpt                                     # a trained model: categories or words, and layers
sightline inspect yolox_nano@yolox_nano.pth                     # the same of a name with weights
sightline inspect best.ckpt --picture dog.jpg --png heat.png    # what it looks at
"""

# The file's name ends in an underscore because tools/inspect.py would stand before Python's own `inspect` when another
# tool is run as a file.

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import Tensor, nn

from sightline.backbone import BACKBONES, build_backbone
from sightline.backbone.activations import activation_report
from sightline.backbone.classifiers import CLASSIFIERS, build_classifier
from sightline.backbone.initialise import INITIALISERS, initialise, initialiser_named
from sightline.backbone.layer_table import layer_table
from sightline.backbone.model import Model
from sightline.backbone.protocol import IMAGENET_MEAN, IMAGENET_STD
from sightline.datasets.batching import collate, frame_for
from sightline.datasets.detection import read_picture
from sightline.datasets.images import IMAGE_SUFFIXES, read_image, write_image
from sightline.datasets.shapes import shapes_table
from sightline.datasets.structures import Batch, ImageInfo, Instances, Sample
from sightline.datasets.table import DataError, nearest
from sightline.datasets.transforms import from_hwc, resize, resize_image
from sightline.detectors import Detector
from sightline.detectors.inference import usable_device
from sightline.detectors.saliency import heat_map
from sightline.evaluation.drawing import annotate
from sightline.tools import model_names
from sightline.tools.command_options import OptionsParser
from sightline.tools.inspect_data import draw_examples, store_statistics, summary, tables_of
from sightline.tools.inspect_models import about, model_table, shown_for
from sightline.tools.inspect_pictures import overlay, plot_activations
from sightline.tools.main import run
from sightline.tools.model_names import MODELS

CHECKPOINTS = (".ckpt", ".pt", ".pth", ".safetensors")
# What is shown, and the options that matter to it.
OPTIONS = {
    "a data set": {"data", "split", "size", "png", "statistics"},
    "the table of layers": {"size", "depth"},
    "--activations": {"activations", "data", "size", "init", "seed", "png"},
    "--picture": {"picture", "category", "png"},
}
PICTURES = 4  # in the batch whose activations are looked at
# What to do about models that have no one answer whose heat could be shown.
INSTEAD = {
    "captioning": "{model} writes sentences; see where it looks for each word: sightline predict {model} {picture} --attention",
    "segmentation": "{model} names every pixel; see what it takes each for: sightline predict {model} {picture}",
}


def main(argv: list[str] | None = None) -> int:
    """Runs the command; `argv` without the command's name, by default the process's. Returns the exit code."""
    arguments = _arguments(argv)
    what = arguments.what
    if what is None and arguments.data is None:
        raise DataError("name a model, a data set or a checkpoint, e.g. sightline inspect vgg16; see --help")
    if what is None or what == "shapes" or _is_data(what):
        _check_options(arguments, "a data set")
        _show_data(what or arguments.data, arguments)
        return 0
    show, task = _show_layers, "the table of layers"
    if arguments.picture:
        show, task = _show_heat, "--picture"
    elif arguments.activations:
        show, task = _show_activations, "--activations"
    _check_options(arguments, task)
    if arguments.init:
        initialiser_named(arguments.init)  # refused before a network is built and pictures are read
    if "@" in what or Path(what).suffix in CHECKPOINTS:
        model: nn.Module = model_names.build(what, usable_device(arguments.device))
    else:
        model = build(what, real=show is not _show_layers)
    show(model, arguments)
    return 0


def build(name: str, *, real: bool = True) -> nn.Module:
    """The network of that name with random weights: a classifier where there is one, else a backbone or a model.

    Args:
        name: of `CLASSIFIERS`, `BACKBONES` or `MODELS`, or timm:NAME or torchvision:NAME.
        real: give it weights; else, where possible, its tensors are shapes alone.

    Raises:
        DataError: no such network.
    """
    if name in MODELS:
        return MODELS[name]()
    if not real:
        try:
            with torch.device("meta"):
                return _network(name)
        except (NotImplementedError, RuntimeError):  # a constructor that does arithmetic
            pass
    return _network(name)


def _network(name: str) -> nn.Module:
    kind, _, rest = name.partition(":")
    if name in CLASSIFIERS or kind == "timm":
        return build_classifier(name, 1000)
    if name in BACKBONES:
        return build_backbone(name)
    if kind == "torchvision":
        known = torchvision.models.list_models()
        if rest not in known:
            raise DataError(f"torchvision has no model {rest!r}{nearest(rest, known)}")
        return torchvision.models.get_model(rest, weights=None)
    known = [*dict.fromkeys([*CLASSIFIERS, *BACKBONES, *MODELS])]
    raise DataError(
        f"{name!r} is no model, and no file or folder{nearest(name, [*known, *_files_near(name)])}\n"
        f"  models: {', '.join(known)}, timm:NAME, torchvision:NAME"
    )


def _files_near(name: str) -> Iterable[str]:
    parent = Path(name).parent
    return (str(path) for path in parent.iterdir()) if parent.is_dir() else ()


def _is_data(what: str) -> bool:
    """Whether a path leads to a data set; whether it is a good one shows when it is read."""
    path = Path(what).expanduser()
    if path.suffix.lower() in IMAGE_SUFFIXES:
        raise DataError(f"{what} is a picture; name a checkpoint first: sightline inspect best.ckpt --picture {what}")
    return path.is_dir() or path.suffix in (".json", ".yaml", ".yml") or (path.is_file() and not _is_model(path))


def _is_model(path: Path) -> bool:
    return path.suffix in CHECKPOINTS


def _check_options(arguments: argparse.Namespace, task: str) -> None:
    """An option that would change nothing is a misunderstanding."""
    given = {name for name, value in vars(arguments).items() if value not in (None, False)}
    for name in sorted(given - OPTIONS[task] - {"what", "device"}):
        fitting = [other for other, options in OPTIONS.items() if name in options]
        raise DataError(f"--{name} does nothing for {task}; it goes with {' and '.join(fitting)}")


def _show_layers(model: nn.Module, arguments: argparse.Namespace) -> None:
    height, width = _size(arguments, _own_size(model, arguments.what))
    if isinstance(model, Model):
        if arguments.what not in MODELS:
            print(about(model, arguments.what))
        print(shown_for(model), end="")
        table = model_table(model, (height, width))
    else:
        table = layer_table(model, (height, width))
    print((table.grouped(arguments.depth) if arguments.depth is not None else table).text())


def _show_activations(model: nn.Module, arguments: argparse.Namespace) -> None:
    images = _pictures(arguments.data or "shapes", _size(arguments, _own_size(model, arguments.what)))
    start = "its own weights" if isinstance(model, Model) and not arguments.init else arguments.init or "its own start"
    if isinstance(model, Model):
        device = next(model.parameters()).device
        sizes = torch.tensor([images.shape[-2:]] * len(images), device=device)
        images, network = model.normalize(images.to(device), sizes), model.backbone
    else:
        mean, std = (
            torch.tensor(value).view(-1, 1, 1)
            for value in (getattr(model, "mean", IMAGENET_MEAN), getattr(model, "std", IMAGENET_STD))
        )
        images, network = (images / 255 - mean) / std, model.train()  # as training would start
    if arguments.init:
        initialise(network, arguments.init, seed=arguments.seed or 0)
    report = activation_report(network, images, gradients=True)
    print(f"{arguments.what} with {start}, {len(images)} pictures\n\n{report.text()}")
    if arguments.png:
        plot_activations(report, arguments.png, title=f"{arguments.what} with {start}: outputs of its layers")
        print(f"written: {arguments.png}")


def _pictures(data: str, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) in 0..255: a few pictures of a data set, or noise."""
    if data == "noise":
        generator = torch.Generator().manual_seed(0)
        return (torch.randn(PICTURES, 3, *size, generator=generator) * 64 + 128).clamp(0, 255)
    table = shapes_table("train", PICTURES, 128) if data == "shapes" else next(iter(tables_of(data).values()))
    rows = np.linspace(0, len(table) - 1, PICTURES).round().astype(int).tolist()
    return torch.stack([resize_image(from_hwc(read_picture(table.paths[row])), size) for row in rows]).float()


def _show_heat(model: nn.Module, arguments: argparse.Namespace) -> None:
    if isinstance(model, Model) and model.task in INSTEAD:
        raise DataError(INSTEAD[model.task].format(model=arguments.what, picture=arguments.picture))
    if not isinstance(model, Detector) or arguments.what in MODELS:
        raise DataError(f"{arguments.what} has not been trained; name a checkpoint to see what it looks at")
    if not arguments.png:
        raise DataError("name the picture to draw: --png heat.png")
    image = read_image(arguments.picture)
    label = _label(model, arguments.category)
    sample, batch = _prepared(model, image)
    device = next(model.parameters()).device
    heat = heat_map(model, batch.images.to(device), batch.sizes.to(device), label=label)
    answer = Instances(heat.box[None], torch.tensor([heat.label]), torch.tensor([heat.score]))
    answer = answer.to("cpu").to_original(sample.info)
    drawn = annotate(overlay(image, heat.heat.cpu().numpy()), answer, model.categories)
    write_image(arguments.png, drawn)
    print(f"{arguments.picture}: {model.categories[heat.label]} {heat.score:.3f}; written: {arguments.png}")


def _label(model: Detector, category: str | None) -> int | None:
    if category is None:
        return None
    if category not in model.categories:
        raise DataError(f"the model knows no category {category!r}{nearest(category, model.categories)}")
    return model.categories.index(category)


def _prepared(model: Detector, image: np.ndarray) -> tuple[Sample, Batch]:
    """A picture (H, W, 3) as the model takes it."""
    nothing = Instances(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    sample = resize(Sample(from_hwc(image), nothing, ImageInfo(0, "picture", image.shape[:2])), *model.resize)
    return sample, collate([sample], frame_for(sample.image.shape[1:], model.resize))


def _show_data(path: str, arguments: argparse.Namespace) -> None:
    tables = tables_of(path, arguments.split)
    for split, table in tables.items():
        print(f"{split}: {table.describe()}\n{summary(table)}\n")
        if table.problems.counts:
            print(table.problems.summary(), file=sys.stderr)
    split = "train" if "train" in tables else next(iter(tables))
    if arguments.png:
        draw_examples(tables[split], arguments.png)
        print(f"examples of {split}: {arguments.png}")
    if arguments.statistics:
        print(f"{split}: {store_statistics(tables[split], arguments.statistics, _size(arguments, (32, 32)))}")


def _own_size(model: nn.Module, what: str) -> tuple[int, int]:
    """(height, width) that a model takes alone, or a square of a trained one's shorter side; else the usual 224 pixels."""
    if not isinstance(model, Model):
        return getattr(model, "size", (224, 224))
    if len(model.resize) == 3 and model.resize[2]:
        return model.resize[0], model.resize[1]
    return (224, 224) if what in MODELS else (model.resize[0], model.resize[0])


def _size(arguments: argparse.Namespace, usual: tuple[int, int]) -> tuple[int, int]:
    size = arguments.size or usual
    if len(size) > 2 or min(size) < 1:
        raise DataError(f"--size takes one number or height and width, in pixels; got {' '.join(map(str, size))}")
    return size[0], size[-1]


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OptionsParser(
        prog="sightline inspect",
        description=__doc__.split(":", 1)[1].strip(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("what", nargs="?", metavar="WHAT", help="a model's name, a data set or a checkpoint (or NAME@WEIGHTS)")
    add("--data", metavar="PATH", help="a data set; beside a model, the pictures of --activations (shapes, or noise)")
    add("--split", help="only this part of the data set")
    add(
        "--size",
        type=int,
        nargs="+",
        metavar="N",
        help="height and width in pixels (a checkpoint's own, else 224; of --statistics, 32)",
    )
    add("--depth", type=int, metavar="N", help="group layers: 1 for a network's own parts")
    add("--activations", action="store_true", help="what becomes of a signal, layer by layer")
    add("--init", metavar="NAME", help=f"start from these weights: {', '.join(INITIALISERS)}")
    add("--seed", type=int, metavar="N", help="of --init's random numbers (0)")
    add("--statistics", metavar="FILE", help="compute mean, deviation, mean image and components; store them here")
    add("--picture", metavar="FILE", help="show what the checkpoint looks at in this picture")
    add("--category", metavar="NAME", help="explain its best answer of this category (the best of all)")
    add("--png", "--out", dest="png", metavar="FILE", help="draw histograms, examples or heat here")
    add("--device", help="for checkpoints: cuda, cuda:1, mps or cpu; by default the best there is")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(run("inspect", sys.argv[1:]))
