"""Any network as a backbone, by the names of the layers whose outputs are wanted, and ready-made ones of that kind."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torchvision.models import mobilenet_v3_large
from torchvision.models.feature_extraction import create_feature_extractor
from torchvision.ops import FrozenBatchNorm2d

from .fpn import BackboneWithFPN, with_fpn
from .model import evaluating
from .norms import Norm
from .protocol import Backbone


def wrap(module: nn.Module, layers: Sequence[str]) -> Backbone:
    """A backbone of the outputs of `layers`; strides and channels are found by a dry run without data.

    Layers above the last one named are left out. Parameters keep their names if `module` is an `nn.Sequential` and
    `layers` are children of it (`wrap(torchvision.models.densenet121().features, ["denseblock4"])`); else each gets
    the prefix `body.`. Name a layer after its activation (VGG's "29", not "28"), for an activation in place overwrites
    what went in. Images are expected normalised with ImageNet's constants; set `mean` and `std` of the result where
    that is not so.

    Args:
        module: takes (B, 3, H, W). It becomes part of the backbone, it is not copied.
        layers: names of submodules in the order they run, finest map first, e.g. ["layer2", "layer4.1"].

    Raises:
        ValueError: no such layer, an output that is no feature map, or a network whose code branches on its data.
    """
    layers = [layers] if isinstance(layers, str) else list(dict.fromkeys(layers))
    names = {name for name, _ in module.named_modules() if name}
    unknown = [layer for layer in layers if layer not in names]
    if unknown or not layers:
        children = ", ".join(name for name, _ in module.named_children())
        raise ValueError(f"{type(module).__name__} has no layer {', '.join(unknown)!r}; its children are: {children}")
    wrapped: Backbone
    if isinstance(module, nn.Sequential) and not any("." in layer for layer in layers):
        wrapped = _WrappedSequential(module, layers)
    else:
        wrapped = _WrappedGraph(module, layers)
    wrapped.strides, wrapped.channels = measure(wrapped)
    if list(wrapped.strides) != sorted(wrapped.strides):
        raise ValueError(f"name the layers finest first: {layers} have strides {wrapped.strides}")
    return wrapped


class _WrappedSequential(Backbone):
    """The children of an `nn.Sequential` up to the last layer wanted, under their own names."""

    def __init__(self, module: nn.Sequential, layers: list[str]) -> None:
        super().__init__()
        self.layers = tuple(name for name, _ in module.named_children() if name in layers)
        stages: list[list[str]] = [[] for _ in layers]
        for name, child in module.named_children():
            done = sum(layer in self._modules for layer in layers)  # how many of the maps lie below this child
            if done == len(layers):
                break
            self.add_module(name, child)
            stages[done].append(name)
        self.stage_prefixes = {layer: tuple(stage) for layer, stage in zip(self.layers, stages, strict=True)}

    def forward(self, images: Tensor) -> list[Tensor]:
        maps, x = [], images
        for name, child in self.named_children():
            x = child(x)
            if name in self.layers:
                maps.append(x)
        return maps


class _WrappedGraph(Backbone):
    """Any module: its graph is traced and cut off above the last layer wanted."""

    def __init__(self, module: nn.Module, layers: list[str]) -> None:
        super().__init__()
        self.layers = tuple(layers)
        try:
            self.body = create_feature_extractor(module, layers, tracer_kwargs={"leaf_modules": [FrozenBatchNorm2d]})
        except (fx.proxy.TraceError, TypeError, RuntimeError) as error:
            raise ValueError(
                f"{type(module).__name__} cannot be traced, for its code branches on its data ({error}); "
                "write a small module that returns the list of maps instead"
            ) from error
        self.stage_prefixes = _graph_stages(self.body.graph, layers)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.body(images)
        return [maps[layer] for layer in self.layers]


def _graph_stages(graph: fx.Graph, layers: list[str]) -> dict[str, tuple[str, ...]]:
    """The parameters that run before each layer's output, in the order of the graph."""
    (outputs,) = (node.args[0] for node in graph.nodes if node.op == "output")
    ends = {outputs[layer]: layer for layer in layers}
    stages, current = {}, []
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr"):
            current.append(f"body.{node.target}")
        if node in ends:
            stages[ends[node]], current = tuple(current), []
    return stages


def measure(backbone: nn.Module) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Strides and channels of a module's maps, by two dry runs on the meta device: shapes only, no arithmetic.

    A stride is the difference in pixels over the difference in cells, so it is exact whatever the padding.

    Raises:
        ValueError: the module cannot run without data, or an output is not (B, C, H, W) with a whole stride.
    """
    small, large = 256, 512
    shapes = [map_shapes(backbone, size) for size in (small, large)]
    strides = []
    for one, two in zip(*shapes, strict=True):
        if len(one) != 4 or two[2] <= one[2] or (large - small) % (two[2] - one[2]):
            raise ValueError(
                f"a layer's output is no feature map (B, C, H, W): {one} at {small} pixels, {two} at {large}"
            )
        strides.append((large - small) // (two[2] - one[2]))
    return tuple(strides), tuple(shape[1] for shape in shapes[0])


def map_shapes(backbone: nn.Module, size: int) -> list[tuple[int, ...]]:
    """Shapes of a module's maps for one image of `size` x `size` pixels, by a dry run without data.

    Raises:
        ValueError: the module cannot run without data, or not at that size.
    """
    state = {name: tensor.to("meta") for name, tensor in _tensors(backbone)}
    try:
        with evaluating(backbone), torch.no_grad():
            maps = functional_call(backbone, state, torch.empty(1, 3, size, size, device="meta"))
    except (RuntimeError, NotImplementedError) as error:
        raise ValueError(f"{type(backbone).__name__} cannot run on {size}-pixel images: {error}") from error
    return [tuple(x.shape) for x in (maps if isinstance(maps, list) else [maps])]


def _tensors(module: nn.Module) -> Iterable[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def mobilenet_v3_large_fpn(*, norm: Norm = nn.BatchNorm2d) -> BackboneWithFPN:
    """MobileNetV3-Large (https://arxiv.org/abs/1905.02244) with a pyramid, as torchvision's Faster R-CNN has it.

    Two maps of stride 32 (blocks 13 and 16), and the pooled one of stride 64. The norms' eps is 1e-5 by default, as in
    torchvision's detectors, not the 1e-3 of its classifier.
    """
    return with_fpn(wrap(mobilenet_v3_large(weights=None, norm_layer=norm).features, ["13", "16"]))
