"""Convolutions' weights from ONNX files that the test writes itself."""

import numpy as np
import pytest
import torch

from sightline.backbone import WeightsError
from sightline.backbone.weights import read_file

onnx = pytest.importorskip("onnx")
helper, numpy_helper = onnx.helper, onnx.numpy_helper

FIRST = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)
BIAS = np.array([5, 7], np.float32)
SECOND = np.ones((1, 2, 1, 1), np.float32)


def network(*nodes):
    """Two convolutions, the first with constant weights, and what stands before the second."""
    first = helper.make_node("Conv", ["images", "371", "372"], ["x"], name="Conv_0")
    second = helper.make_node("Conv", ["x", "w"], ["y"], name="Conv_9")
    return helper.make_model(
        helper.make_graph(
            [first, helper.make_node("Relu", ["x"], ["z"]), *nodes, second],
            "network",
            [helper.make_tensor_value_info("images", onnx.TensorProto.FLOAT, [1, 3, 8, 8])],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1, 1, 7, 7])],
            [numpy_helper.from_array(FIRST, "371"), numpy_helper.from_array(BIAS, "372")],
        )
    )


def test_weights_in_order_of_execution(tmp_path):
    constant = helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(SECOND))
    onnx.save(network(constant), tmp_path / "network.onnx")
    state = read_file(tmp_path / "network.onnx")
    assert list(state) == ["onnx.0.Conv_0.weight", "onnx.0.Conv_0.bias", "onnx.1.Conv_9.weight"]
    for value, expected in zip(state.values(), (FIRST, BIAS, SECOND), strict=True):
        assert torch.equal(value, torch.from_numpy(expected))
    state["onnx.0.Conv_0.weight"].add_(1)  # the file's own memory is read-only


def test_a_file_without_convolutions(tmp_path):
    (tmp_path / "empty.onnx").touch()
    with pytest.raises(WeightsError, match=r"empty.onnx has no convolutions"):
        read_file(tmp_path / "empty.onnx")


def test_weights_that_are_computed(tmp_path):
    onnx.save(network(helper.make_node("Abs", ["372"], ["w"])), tmp_path / "network.onnx")
    with pytest.raises(WeightsError, match=r"network.onnx: 'w', of convolution Conv_9, is computed in the graph"):
        read_file(tmp_path / "network.onnx")
