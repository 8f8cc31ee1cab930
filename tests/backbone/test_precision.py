"""In which numbers models answer."""

from pathlib import Path

import pytest
import torch

from sightline.backbone import precision
from sightline.backbone.model import Model, answering
from sightline.backbone.precision import mixed


class Product(Model):
    """A matrix product; says in which type it was computed."""

    def __init__(self):
        super().__init__(mean=(0, 0, 0), std=(1, 1, 1))
        self.layer = torch.nn.Linear(3, 3)
        self.dropout = torch.nn.Dropout(0.5)

    def forward(self, x):
        return self.dropout(self.layer(x))


@pytest.mark.parametrize("able", [True, False])
@pytest.mark.parametrize(("asked", "half"), [("auto", None), ("bfloat16", True), ("float32", False)])
def test_answers_are_computed_in_the_models_precision(able, asked, half, monkeypatch):
    monkeypatch.setattr(precision, "has_bfloat16", lambda device: able)
    model = Product().train()
    model.precision = asked
    with answering(model):
        found = model(torch.ones(2, 3))
        assert torch.is_inference_mode_enabled()
        assert not model.dropout.training
    assert found.dtype == (torch.bfloat16 if (able if half is None else half) else torch.float32)
    assert model.training
    assert model.dropout.training
    assert not torch.is_autocast_enabled("cpu")


def test_an_unknown_precision():
    with pytest.raises(ValueError, match="'half': auto, bfloat16 or float32"):
        mixed("cpu", "half")


def test_each_gpu_is_asked_for_itself(monkeypatch):
    """The current one may be of another kind than the one that a model is on."""
    monkeypatch.undo()  # of the fixture under which all other tests run
    current = []

    class Device:
        def __init__(self, device):
            self.index = device.index

        def __enter__(self):
            current.append(self.index)

        def __exit__(self, *_):
            current.pop()

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: current == [1])
    assert not precision.has_bfloat16("cuda:0")
    assert precision.has_bfloat16(torch.device("cuda", 1))
    assert precision.computed_in("cuda:0") == torch.float32
    assert precision.computed_in("cuda:1") == torch.bfloat16
    assert precision.computed_in("cuda:0", "bfloat16") == torch.bfloat16


def test_what_this_machine_can(monkeypatch):
    monkeypatch.undo()  # of the fixture under which all other tests run
    info = Path("/proc/cpuinfo")
    words = set(info.read_text().split()) if info.exists() else set()
    if "avx2" not in words:
        pytest.skip("needs an x86 CPU whose system says what it can")
    assert precision.has_bfloat16("cpu") == bool({"avx512_bf16", "amx_tile"} & words)
    assert not precision.has_bfloat16("mps")
    assert precision.has_bfloat16("cuda") == (
        torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    )
