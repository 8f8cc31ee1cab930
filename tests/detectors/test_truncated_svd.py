"""Truncated SVD of fully connected layers: the nearest of a rank, kept by checkpoints, and what it saves."""

import pytest
import torch
from torch import nn

from sightline.backbone.checkpoint import load_with
from sightline.detectors import faster_rcnn, faster_rcnn_c5, localization, save
from sightline.detectors.fast_rcnn import fast_rcnn
from sightline.detectors.truncated_svd import head_cost, low_rank, truncate, truncate_head

SMALL = {"num_classes": 3, "norm": "batch", "proposals": 12, "head_width": 48}
MODELS = {
    "fast_rcnn": lambda: fast_rcnn("resnet10_narrow", proposer="sliding_window", **SMALL),
    "fast_rcnn on a pyramid": lambda: fast_rcnn("resnet10_narrow_fpn", proposer="sliding_window", align=True, **SMALL),
    "faster_rcnn": lambda: faster_rcnn("resnet10_narrow_fpn", anchor_sizes=((16,), (32,), (64,), (96,)), **SMALL),
    "faster_rcnn_c5": lambda: faster_rcnn_c5("resnet10_narrow", anchor_sizes=(16, 32), **SMALL),
}
BUILDERS = {"fast_rcnn": fast_rcnn, "faster_rcnn": faster_rcnn, "faster_rcnn_c5": faster_rcnn_c5}
# inputs, outputs
SHAPES = [(60, 40), (40, 60), (30, 30), (1, 9), (9, 1)]


def pictures():
    return torch.randint(0, 256, (2, 3, 64, 96), dtype=torch.uint8), torch.tensor([[64, 96], [50, 70]])


def same(one, other, **tolerance):
    for name in ("boxes", "labels", "scores"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), **tolerance)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_full_rank_is_the_layer_itself(shape, bias):
    layer, vectors = nn.Linear(*shape, bias=bias), torch.randn(5, shape[0])
    pair = truncate(layer, min(shape))
    torch.testing.assert_close(pair(vectors), layer(vectors), atol=1e-5, rtol=0)
    assert pair[0].bias is None
    assert (pair[1].bias is not None) == bias


@pytest.mark.parametrize("shape", SHAPES)
def test_the_error_is_the_tail_of_the_singular_values(shape):
    """Eckart and Young: no matrix of that rank is nearer."""
    layer = nn.Linear(*shape).double()
    values = torch.linalg.svdvals(layer.weight.detach())
    for rank in range(1, min(shape) + 1, 7):
        pair = truncate(layer, rank)
        error = pair[1].weight @ pair[0].weight - layer.weight
        torch.testing.assert_close(torch.linalg.matrix_norm(error), values[rank:].norm(), atol=1e-10, rtol=1e-7)


def test_factors_are_the_papers():
    """U_t and S_t V_t^T, up to signs; the layer itself is left as it was."""
    layer = nn.Linear(20, 12).double()
    before = layer.weight.clone()
    left, values, right = torch.linalg.svd(before, full_matrices=False)
    first, second = truncate(layer, 5)
    torch.testing.assert_close(first.weight.abs(), (values[:5, None] * right[:5]).abs())
    torch.testing.assert_close(second.weight.abs(), left[:, :5].abs())
    assert torch.equal(second.bias, layer.bias)
    assert torch.equal(layer.weight, before)


def test_a_layer_of_low_rank_loses_nothing():
    """Also where most singular values are zero, whose vectors are any."""
    thin = low_rank(200, 100, 3)
    layer = nn.Linear(200, 100)
    layer.weight.data, layer.bias.data = thin[1].weight.data @ thin[0].weight.data, thin[1].bias.data
    vectors = torch.randn(4, 200)
    torch.testing.assert_close(truncate(layer, 3)(vectors), layer(vectors))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_the_kind_of_number_stays(dtype):
    pair = truncate(nn.Linear(8, 6).to(dtype), 2)
    assert {parameter.dtype for parameter in pair.parameters()} == {dtype}


@pytest.mark.parametrize("name", MODELS)
@torch.inference_mode()
def test_a_detector_at_full_rank_answers_the_same_and_saved_and_loaded_too(name, tmp_path):
    model, (images, sizes) = MODELS[name]().eval(), pictures()
    for layer in (model.roi_heads.box_predictor.cls_score, model.roi_heads.box_predictor.bbox_pred):
        layer.weight.mul_(20 / layer.weight.std())  # so that there is something to find
    whole = truncate_head(model, (48, 48))
    found = whole.detect(images, sizes)
    assert (found.labels >= 0).any()
    same(found, model.detect(images, sizes), atol=0.02, rtol=1e-3)
    less = truncate_head(model, (5, 3))
    save(less, tmp_path / "less.ckpt")
    again = load_with(BUILDERS, tmp_path / "less.ckpt", "cpu")
    assert again.architecture["arguments"]["truncated"] == [5, 3]
    same(again.detect(images, sizes), less.detect(images, sizes), atol=0, rtol=0)


def test_the_model_that_came_in_stays_as_it_was():
    model = MODELS["fast_rcnn"]()
    state, arguments = {k: v.clone() for k, v in model.state_dict().items()}, dict(model.architecture["arguments"])
    truncate_head(model, (4, 4))
    assert model.architecture["arguments"] == arguments
    assert model.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_what_it_saves():
    """fc6 takes 7 x 7 cells of 128 channels; t (inputs + outputs) products in place of inputs * outputs."""
    model = MODELS["fast_rcnn"]()
    inputs = 128 * 49
    assert head_cost(model) == (inputs * 48 + 48 + 48 * 48 + 48, inputs * 48 + 48 * 48)
    products = 10 * (inputs + 48) + 6 * (48 + 48)
    assert head_cost(truncate_head(model, (10, 6))) == (products + 48 + 48, products)


def test_a_truncated_head_can_be_trained():
    model = truncate_head(MODELS["faster_rcnn"](), (5, 3)).train()
    features = model.roi_heads.box_head(torch.randn(6, 64, 7, 7))
    features.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in model.roi_heads.box_head.parameters())


# name: what is done to a small Fast R-CNN, what the message says
MISTAKES = {
    "rank too large": (
        lambda m: truncate_head(m, (49, 3)),
        "6272 inputs and 48 outputs has ranks from 1 to 48, got 49",
    ),
    "second too large": (lambda m: truncate_head(m, (3, 49)), "48 inputs and 48 outputs"),
    "rank of zero": (lambda m: truncate_head(m, (0, 3)), "from 1 to 48, got 0"),
    "one rank": (lambda m: truncate_head(m, (3,)), "two ranks"),
    "twice": (lambda m: truncate_head(truncate_head(m, (4, 4)), (2, 2)), "truncated already"),
    "no such layers": (lambda m: truncate_head(localization("resnet10_narrow", 3), (4, 4)), "Localization"),
    "built so": (lambda m: fast_rcnn("resnet10_narrow", 3, head_width=8, truncated=(9, 1)), "from 1 to 8, got 9"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_named(name):
    act, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message):
        act(MODELS["fast_rcnn"]())
