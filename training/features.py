"""What a network makes of every picture of a data set at one of its layers, computed once and kept on disk.

Papers: DeCAF (https://arxiv.org/abs/1310.1531), "CNN features off-the-shelf" (https://arxiv.org/abs/1403.6382).

The cut is by hooks on the layer, which any layer of any network has, named as `named_modules` names it; the forward pass
ends there. Letters: B images, I pictures, D features.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from ..backbone.model import evaluating
from ..datasets.detection import DetectionDataset, Loader, loader_for
from ..datasets.propose import content_digest
from ..datasets.table import Table
from ..detectors.model import Detector

FORMAT = 1  # raised when the same settings no longer give the same numbers


class Cut:
    """A model up to one of its layers.

    Args:
        model: any detector.
        layer: its name in the model, e.g. "backbone.classifier.1".
        inputs: take what goes into the layer, not what comes out.

    Raises:
        ValueError: the model has no such layer.
    """

    def __init__(self, model: Detector, layer: str, *, inputs: bool = False) -> None:
        names = [name for name, _ in model.named_modules() if name]
        if layer not in names:
            raise ValueError(f"{type(model).__name__} has no layer {layer!r}; it has {', '.join(names)}")
        self.model, self.layer, self.inputs = model, layer, inputs

    @torch.inference_mode()
    def __call__(self, images: Tensor, sizes: Tensor) -> Tensor:
        """(B, D) float32, in evaluation mode: maps (B, D, H, W) are averaged over their cells.

        Args:
            images: (B, 3, H, W), as the model takes them.
            sizes: (B, 2), the valid (height, width) of each.
        """
        taken: list[Any] = []
        module = self.model.get_submodule(self.layer)
        if self.inputs:
            handle = module.register_forward_pre_hook(lambda _, inputs: self._stop(taken, inputs[0]))
        else:
            handle = module.register_forward_hook(lambda _, __, output: self._stop(taken, output))
        try:
            with evaluating(self.model):
                self.model(images, sizes)
        except _Reached:
            pass
        finally:
            handle.remove()
        return self._vectors(taken)

    @staticmethod
    def _stop(taken: list[Any], value: Any) -> None:
        taken.append(value)
        raise _Reached

    def _vectors(self, taken: list[Any]) -> Tensor:
        value = taken[0] if taken else None
        if not isinstance(value, Tensor) or value.ndim not in (2, 4):
            kind = "nothing" if value is None else getattr(value, "shape", type(value).__name__)
            raise ValueError(
                f"layer {self.layer!r} gives {kind}, not vectors (B, D) or maps (B, D, H, W); name another"
            )
        return (value.mean((2, 3)) if value.ndim == 4 else value).float()

    def uses(self, images: Tensor, sizes: Tensor) -> set[str]:
        """The names of the modules that run before the cut, the layer itself among them if its output is taken."""
        entered: set[str] = set()
        named = [(name, module) for name, module in self.model.named_modules()]
        handles = [m.register_forward_pre_hook(lambda *_, name=name: entered.add(name)) for name, m in named]
        try:
            self(images, sizes)
        finally:
            for handle in handles:
                handle.remove()
        return entered - {self.layer} if self.inputs else entered


class _Reached(Exception):
    """Ends a forward pass at the layer wanted."""


def table_features(
    cut: Cut, table: Table, folder: str | os.PathLike, *, batch_size: int = 32, num_workers: int = 0
) -> Tensor:
    """The features of every picture, read from `folder` if they are there, else computed and put there.

    Their file's name is a hash of all that they follow from: the weights below the cut, the pictures' content, and how
    pictures are brought to size. So nothing stale is ever read.

    Args:
        cut: a model and a layer.
        table: I pictures; they reach the model as `model.resize` says.
        folder: of the cache, made if need be.
        batch_size: pictures at a time.
        num_workers: processes that load pictures.

    Returns:
        (I, D) float32 on the CPU, in the table's order.

    Raises:
        DataError: a picture cannot be read.
        ValueError: the layer gives neither vectors nor maps.
    """
    dataset = DetectionDataset(table, resize=cut.model.resize)
    loader = loader_for(dataset, batch_size, num_workers=num_workers)
    path = Path(folder) / f"{_key(cut, dataset, loader)}.npy"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            with partial.open("wb") as file:
                np.save(file, _compute(cut, loader, table), allow_pickle=False)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
    return torch.from_numpy(np.load(path, allow_pickle=False))


def _compute(cut: Cut, loader: Loader, table: Table) -> np.ndarray:
    device = next(cut.model.parameters()).device
    rows = {int(image_id): row for row, image_id in enumerate(table.image_ids)}
    features: np.ndarray | None = None
    for batch in tqdm(loader, desc="features", unit="batch", leave=False):
        batch = batch.to(device)
        vectors = cut(batch.images, batch.sizes).cpu().numpy()
        if features is None:
            features = np.empty((len(table), vectors.shape[1]), np.float32)
        features[[rows[info.id] for info in batch.infos]] = vectors
    return features


def _key(cut: Cut, dataset: DetectionDataset, loader: Loader) -> str:
    """32 hexadecimal digits."""
    digest = hashlib.sha256()
    hash_pictures(digest, dataset.table)
    digest.update(repr((FORMAT, cut.layer, cut.inputs, tuple(cut.model.resize))).encode())
    digest.update(loader.batch_sampler.frames.tobytes())
    hash_tensors(digest, _tensors_below(cut, dataset))
    return digest.hexdigest()[:32]


def hash_pictures(digest: hashlib._Hash, table: Table) -> None:
    """Takes in the pictures' content, not their names or dates: a copy may have the date of what it replaced."""
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        digest.update("".join(pool.map(content_digest, table.paths)).encode())
    digest.update(table.sizes.tobytes())


def hash_tensors(digest: hashlib._Hash, named: Iterable[tuple[str, Tensor]]) -> None:
    """Takes in tensors with their names and types."""
    for name, tensor in named:
        digest.update(repr((name, tensor.dtype, tuple(tensor.shape))).encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())


def _tensors_below(cut: Cut, dataset: DetectionDataset) -> list[tuple[str, Tensor]]:
    """The parameters and buffers of what runs before the cut: those above, such as a new last layer's, change nothing."""
    device = next(cut.model.parameters()).device
    image = dataset[0].image[None].to(device)
    used = cut.uses(image, torch.tensor([image.shape[2:]], device=device))
    tensors: list[tuple[str, Tensor]] = []
    for name, module in cut.model.named_modules():
        if name in used:
            own: list[tuple[str, nn.Parameter | Tensor]] = list(module.named_parameters(recurse=False))
            tensors += [(f"{name}.{key}", value) for key, value in own + list(module.named_buffers(recurse=False))]
    return tensors
