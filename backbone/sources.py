"""Where published weights are, and how they get here.

Downloads are kept where torch.hub keeps its own (`TORCH_HOME`, by default ~/.cache/torch/hub/checkpoints), so files
that torchvision fetched are found. A file's name ends in the first digits of its SHA-256, which is checked at every
load.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import torch
from tqdm import tqdm

HASH = re.compile(r"-([0-9a-f]{8,64})\.[a-z]+$")

# Model, named source, file: all torchvision's (BSD-3-Clause).
SOURCES: dict[str, dict[str, str]] = {
    model: {source: f"https://download.pytorch.org/models/{file}" for source, file in files.items()}
    for model, files in {
        "alexnet": {"imagenet": "alexnet-owt-7be5be79.pth"},
        "googlenet": {"imagenet": "googlenet-1378be20.pth"},
        "vgg11": {"imagenet": "vgg11-8a719046.pth"},
        "vgg11_bn": {"imagenet": "vgg11_bn-6002323d.pth"},
        "vgg13": {"imagenet": "vgg13-19584684.pth"},
        "vgg13_bn": {"imagenet": "vgg13_bn-abd245e5.pth"},
        "vgg16": {"imagenet": "vgg16-397923af.pth"},
        "vgg16_bn": {"imagenet": "vgg16_bn-6c64b313.pth"},
        "vgg19": {"imagenet": "vgg19-dcbb9e9d.pth"},
        "vgg19_bn": {"imagenet": "vgg19_bn-c79401a0.pth"},
        "squeezenet1_1": {"imagenet": "squeezenet1_1-b8a52dc0.pth"},
        "resnet18": {"imagenet": "resnet18-f37072fd.pth"},
        "resnet34": {"imagenet": "resnet34-b627a593.pth"},
        # "imagenet" is the first recipe, which detectors fine-tune from; "imagenet_v2" classifies better (80.9 %
        # against 76.1 % with ResNet-50).
        "resnet50": {"imagenet": "resnet50-0676ba61.pth", "imagenet_v2": "resnet50-11ad3fa6.pth"},
        "resnet101": {"imagenet": "resnet101-63fe2227.pth", "imagenet_v2": "resnet101-cd907fc2.pth"},
        "resnet152": {"imagenet": "resnet152-394f9c45.pth", "imagenet_v2": "resnet152-f82ba261.pth"},
        "mobilenet_v2": {"imagenet": "mobilenet_v2-b0353104.pth", "imagenet_v2": "mobilenet_v2-7ebf99e0.pth"},
        "mobilenet_v3_large": {
            "imagenet": "mobilenet_v3_large-8738ca79.pth",
            "imagenet_v2": "mobilenet_v3_large-5c1a4163.pth",
        },
        "faster_rcnn:resnet50_fpn": {"coco": "fasterrcnn_resnet50_fpn_coco-258fb6c6.pth"},
        "faster_rcnn_v2:resnet50_fpn_v2": {"coco": "fasterrcnn_resnet50_fpn_v2_coco-dd69338a.pth"},
        "faster_rcnn_mobilenet_v3:": {"coco": "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth"},
        "mask_rcnn:resnet50_fpn": {"coco": "maskrcnn_resnet50_fpn_coco-bf2d0c1e.pth"},
        "mask_rcnn_v2:resnet50_fpn_v2": {"coco": "maskrcnn_resnet50_fpn_v2_coco-73cbd019.pth"},
        "retinanet_resnet50_fpn": {"coco": "retinanet_resnet50_fpn_coco-eeacb38b.pth"},
        "fcos_resnet50_fpn": {"coco": "fcos_resnet50_fpn_coco-99b0c9b7.pth"},
        "fcn_resnet50": {"coco": "fcn_resnet50_coco-1167a1af.pth"},
        "fcn_resnet101": {"coco": "fcn_resnet101_coco-7ecb50ca.pth"},
    }.items()
}


class WeightsError(ValueError):
    """Weights that cannot be had or do not fit: the message names the file, what is wrong with it, and the fix."""


def find_weights(source: str | os.PathLike, *, name: str | None = None) -> Path:
    """The file of a source: the path itself, or where an address or a named source is cached, downloaded if need be.

    Raises:
        WeightsError: no such file or named source, no network, or a download that differs from its hash.
    """
    text = os.fspath(source)
    named = SOURCES.get(name or "", {})
    url = named.get(text, text)
    if urlparse(url).scheme in ("http", "https"):
        return _cached(url)
    path = Path(text).expanduser()
    if path.is_file():
        return path
    if path.suffix or path.parent != Path("."):
        raise WeightsError(f"{path} is a folder, not a file of weights" if path.is_dir() else f"no weights at {path}")
    close = difflib.get_close_matches(text, named, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else ""
    known = ", ".join(map(repr, named)) or "none"
    raise WeightsError(
        f"no weights named {text!r} for {name or 'this model'} (known: {known}){meant}; or give a path or an address"
    )


def _cached(url: str) -> Path:
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if not path.exists():
        _download(url, path)
    promised = HASH.search(path.name)
    digest = _sha256(path)
    if promised and not digest.startswith(promised[1]):
        raise WeightsError(
            f"{path} is damaged: its name promises a SHA-256 beginning with {promised[1]}, it is {digest[:16]}…; "
            f"delete it, and it is downloaded again from {url}"
        )
    return path


def _download(url: str, path: Path) -> None:
    """Into a file beside `path`, which takes its name only when complete."""
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with (
            urlopen(Request(url, headers={"User-Agent": "sightline"}), timeout=30) as response,
            partial.open("wb") as file,
        ):
            size = int(response.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=path.name) as bar:
                while block := response.read(1 << 20):
                    bar.update(file.write(block))
        if size and partial.stat().st_size != size:
            raise OSError(f"the connection broke after {partial.stat().st_size} of {size} bytes")
        partial.replace(path)
    except (OSError, HTTPException, ValueError) as error:
        raise WeightsError(
            f"could not download {url}: {error}\n  Without a network, fetch that file elsewhere and put it at {path}"
        ) from error
    finally:
        partial.unlink(missing_ok=True)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
