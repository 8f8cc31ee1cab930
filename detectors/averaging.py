"""One model from the checkpoints of several: the mean of their weights.

Of one run's last epochs (Izmailov et al. 2018, https://arxiv.org/abs/1803.05407), or of runs fine-tuned from the same
weights ("model soups", Wortsman et al. 2022, https://arxiv.org/abs/2203.05482). Runs that started from different random
weights have nothing to average; let them vote (`ensemble`).

Deviation: batch norms' statistics are averaged like weights, where the first paper (section 3.2) takes those of the mean
network anew in a pass over the training data. Along one run's end they hardly differ.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import torch

from ..backbone import WeightsError
from ..backbone.checkpoint import default_device, load_with
from ..backbone.model import Model


def average_with(
    builders: Mapping[str, Callable[..., Model]],
    paths: Sequence[str | os.PathLike],
    device: torch.device | str | None,
) -> Model:
    """See `sightline.detectors.average_weights`."""
    if not paths:
        raise ValueError("there are no checkpoints to average")
    total: dict[str, torch.Tensor] = {}
    for i, path in enumerate(paths):
        model = load_with(builders, path, "cpu")
        about = _identity(model)
        if i == 0:
            first = about
        for name, wanted in first.items():
            if (got := about.get(name)) != wanted:
                raise WeightsError(
                    f"{path} cannot be averaged with {paths[0]}: its {name} is {got!r:.200}, there it is {wanted!r:.200}"
                )
        for key, value in model.state_dict().items():
            total[key] = total.get(key, 0) + value.double() if value.is_floating_point() else value
    mean = {key: value / len(paths) if value.is_floating_point() else value for key, value in total.items()}
    model.load_state_dict(mean)  # the last one's; converts to its dtypes
    return model.to(device or default_device())


def _identity(model: Model) -> dict[str, object]:
    """What models to be averaged must share. Which stages were trained is no matter."""
    about = model.description()
    architecture = about.pop("architecture")
    arguments = {f"argument {name}": v for name, v in architecture["arguments"].items() if name != "trainable_stages"}
    return {"architecture": architecture["name"], **arguments, **about}
