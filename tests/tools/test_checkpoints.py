"""The options by which checkpoints become one model: `--svd`, `--precision`. The others are tested with their tools."""

import argparse

import pytest
import torch

from sightline.datasets.table import DataError
from sightline.detectors import classifier, fast_rcnn, save
from sightline.detectors.truncated_svd import head_cost
from sightline.tools.checkpoints import add_options, load_model


@pytest.fixture
def paths(tmp_path):
    """Two small Fast R-CNNs and a classifier, untrained."""
    models = [fast_rcnn("resnet10_narrow", 3, norm="batch", head_width=32, proposer="sliding_window") for _ in range(2)]
    for i, model in enumerate([*models, classifier("lenet", 3)]):
        save(model, tmp_path / f"{i}.ckpt")
    return [str(tmp_path / f"{i}.ckpt") for i in range(3)]


def loaded(*argv):
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    add_options(parser)
    return load_model(parser.parse_args(argv), torch.device("cpu"))


def test_truncated_on_the_way_in(paths, capsys):
    """t (inputs + outputs) products: 8 (6272 + 32) + 4 (32 + 32) in place of 6272 * 32 + 32 * 32."""
    model = loaded(paths[0], "--svd", "8", "4")
    assert head_cost(model).multiply_adds == 50688
    assert not model.training
    said = capsys.readouterr().err
    assert "50.8K parameters in place of 202K" in said
    assert "50.7K multiply-adds in place of 202K" in said


def test_every_member_and_the_mean_are_truncated(paths):
    both = loaded(paths[0], "--svd", "8", "4", "--ensemble", paths[1])
    assert [head_cost(member).multiply_adds for member in both.models] == [50688, 50688]
    assert head_cost(loaded(paths[0], "--svd", "8", "4", "--average", paths[1])).multiply_adds == 50688


def test_without_the_option_nothing_changes(paths, capsys):
    assert head_cost(loaded(paths[0])).multiply_adds == 6272 * 32 + 32 * 32
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("which", "ranks", "message"), [(0, ("33", "4"), "ranks from 1 to 32"), (2, ("4", "4"), "fc6")]
)
def test_mistakes_name_the_file(paths, which, ranks, message):
    with pytest.raises(DataError, match=message) as error:
        loaded(paths[which], "--svd", *ranks)
    assert paths[which] in str(error.value)


@pytest.mark.parametrize("more", [(), ("--average", 1), ("--ensemble", 1)])
def test_precision_is_the_whole_models(paths, more):
    more = [paths[word] if isinstance(word, int) else word for word in more]
    assert loaded(paths[0], *more).precision == "auto"
    assert loaded(paths[0], *more, "--precision", "float32").precision == "float32"


def test_an_unknown_precision_is_an_error(paths, capsys):
    with pytest.raises(SystemExit):
        loaded(paths[0], "--precision", "float16")
    assert "auto" in capsys.readouterr().err
