"""Statistics of pixels, against numpy and scikit-learn on all pixels at once; their file; their use."""

import numpy as np
import pytest
import torch
from PIL import Image

from sightline.datasets.folders import FolderSource
from sightline.datasets.shapes import shapes_table
from sightline.datasets.statistics import COMPONENTS, Statistics, compute, subtract_mean_image, whiten
from sightline.datasets.table import DataError

RNG = np.random.default_rng(0)
SIZE = (5, 7)
COUNT = 300  # more than one chunk


@pytest.fixture(scope="module")
def pictures():
    """(I, H, W, 3) uint8, smooth enough to have few strong components."""
    coarse = RNG.normal(120, 60, (COUNT, 3, 3, 3))
    big = np.stack([np.kron(c.transpose(2, 0, 1), np.ones((2, 3))) for c in coarse])[:, :, : SIZE[0], : SIZE[1]]
    return np.clip(big.transpose(0, 2, 3, 1) + RNG.normal(0, 5, (COUNT, *SIZE, 3)), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def table(pictures, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures):
        Image.fromarray(picture).save(folder / f"{number:03}.png")
    return FolderSource(folder).read()


@pytest.fixture(scope="module")
def tensors(pictures):
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)


def close(found, expected, **tolerance):
    np.testing.assert_allclose(np.asarray(found), expected, **({"rtol": 1e-5, "atol": 1e-6} | tolerance))


def test_mean_spread_and_colours_equal_numpy(table, pictures):
    statistics = compute(table, size=SIZE)
    colours = pictures.reshape(-1, 3) / 255
    assert statistics.count == COUNT
    close(statistics.mean, colours.mean(axis=0))
    close(statistics.std, colours.std(axis=0))
    close(statistics.mean_image, pictures.mean(axis=0).transpose(2, 0, 1) / 255)
    vectors, values = statistics.colour_vectors, statistics.colour_values
    close(vectors @ torch.diag(values) @ vectors.T, np.cov(colours.T, bias=True))
    close(vectors.T @ vectors, np.eye(3))
    assert (values[:-1] >= values[1:]).all()


@pytest.mark.parametrize("kept", [1, 10, 105])
def test_whitening_equals_scikit_learn(table, pictures, tensors, kept):
    """https://scikit-learn.org/stable/modules/generated/sklearn.decomposition.PCA.html"""
    decomposition = pytest.importorskip("sklearn.decomposition")
    flat = pictures.transpose(0, 3, 1, 2).reshape(COUNT, -1) / 255
    reference = decomposition.PCA(kept, whiten=True, svd_solver="full").fit(flat)
    statistics = compute(table, size=SIZE, components=kept)
    assert statistics.components.shape == (kept, 105)
    close(statistics.values, reference.explained_variance_)
    signs = np.sign((statistics.components.numpy() * reference.components_).sum(axis=1))
    close(statistics.components, reference.components_ * signs[:, None], atol=1e-3)
    white = whiten(tensors, statistics, epsilon=0.0)
    close(white, reference.transform(flat) * signs, atol=2e-2)
    close(np.cov(white.numpy().T).reshape(kept, kept), np.eye(kept), atol=1e-3)


def test_zca_whitens_and_stays_near_the_pictures(table, pictures, tensors):
    """Of all whitenings, x -> C^(-1/2) x is the one nearest to the pictures (Kessy et al. 2018)."""
    statistics = compute(table, size=SIZE, components=105)
    flat = pictures.transpose(0, 3, 1, 2).reshape(COUNT, -1) / 255
    values, vectors = np.linalg.eigh(np.cov(flat.T))
    expected = (flat - flat.mean(axis=0)) @ (vectors / np.sqrt(values + 0.01)) @ vectors.T
    white = whiten(tensors, statistics, zca=True, epsilon=0.01)
    assert white.shape == tensors.shape
    close(white.reshape(COUNT, -1), expected, atol=1e-4)


def test_whitening_takes_any_leading_shape_and_floats(table, tensors):
    statistics = compute(table, size=SIZE, components=8)
    white = whiten(tensors[:6], statistics)
    close(whiten(tensors[0], statistics), white[0])
    close(whiten(tensors[:6].float().view(2, 3, 3, *SIZE), statistics), white.view(2, 3, 8))


def test_subtract_mean_image(table, pictures, tensors):
    statistics = compute(table, size=SIZE)
    close(subtract_mean_image(tensors, statistics), (pictures - pictures.mean(axis=0)).transpose(0, 3, 1, 2) / 255)
    close(subtract_mean_image(tensors, statistics).mean(dim=0), np.zeros((3, *SIZE)))
    with pytest.raises(ValueError, match=r"\(3, 4, 7\), but the statistics are of \(3, 5, 7\)"):
        subtract_mean_image(tensors[..., :4, :], statistics)


def test_gray(table, pictures):
    statistics = compute(table, size=SIZE, gray=True)
    gray = (pictures @ [0.299, 0.587, 0.114]) / 255
    close(statistics.mean, [gray.mean()], atol=1e-3)
    close(statistics.std, [gray.std()], atol=1e-3)
    assert statistics.mean_image.shape == (1, *SIZE)
    assert statistics.components.shape == (35, 35)
    assert statistics.colour_vectors.tolist() == [[1.0]]


def test_order_and_chunks_change_no_digit(table, monkeypatch):
    one = compute(table, size=SIZE)
    monkeypatch.setattr("sightline.datasets.statistics._CHUNK", 7)
    other = compute(table.select(np.arange(COUNT)[::-1]), size=SIZE)
    assert all(
        torch.equal(getattr(one, name), getattr(other, name))
        for name in ("mean", "std", "mean_image", "colour_values", "values", "components")
    )


def test_components_are_as_many_as_there_are_directions(table):
    few = table.select(np.arange(6))
    assert compute(few, size=SIZE).components.shape == (5, 105)
    assert compute(few.select(np.array([2, 2, 3, 2])), size=SIZE).components.shape == (1, 105)
    for rows in ([0], [4, 4, 4]):
        statistics = compute(few.select(np.array(rows)), size=SIZE)
        assert statistics.components.shape == (0, 105)
        with pytest.raises(ValueError, match="no principal components"):
            whiten(torch.zeros(3, *SIZE), statistics)


def test_defaults(table):
    few = table.select(np.arange(3))
    assert compute(few, size=33).components.shape == (0, 3 * 33 * 33)
    assert compute(few, size=20).components.shape == (2, 1200)
    assert compute(few, size=SIZE, components=0).components.shape == (0, 105)
    assert compute(table, size=20).components.shape == (COMPONENTS, 1200)
    with pytest.raises(DataError, match="principal components of pictures of 64x64"):
        compute(few, size=64, components=2)


def test_pictures_are_brought_to_size_as_in_training(real_data):
    from sightline.datasets.detection import DetectionDataset
    from sightline.datasets.readers import read

    table = read(real_data("raccoon")).select(np.arange(5))
    dataset = DetectionDataset(table, resize=(24, 40, True))
    expected = torch.stack([dataset[row].image for row in range(5)]).double().mean(dim=0) / 255
    close(compute(table, size=(24, 40)).mean_image, expected.numpy())


def test_built_in_pictures():
    assert compute(shapes_table("train", 4, 64, seed=0), size=16).mean_image.shape == (3, 16, 16)


def test_bad_pictures(table, tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    broken = FolderSource(tmp_path).read()
    (tmp_path / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"a\.png: not a picture"):
        compute(broken)
    with pytest.raises(DataError, match="no pictures"):
        compute(table.select(np.arange(0)))


def test_file_round_trip(table, tmp_path):
    statistics = compute(table, size=SIZE)
    for name in ("new/statistics.npz", "other.name"):
        statistics.save(tmp_path / name)
        again = Statistics.load(tmp_path / name)
        assert again.count == COUNT
        for field, value in vars(statistics).items():
            assert field == "count" or torch.equal(value, getattr(again, field))


def arrays(table):
    statistics = compute(table, size=SIZE, components=4)
    return {name: np.asarray(value) for name, value in vars(statistics).items()}


BROKEN = [
    ("a missing array", lambda a: a.pop("std"), "std"),
    ("a wrong shape", lambda a: a.update(mean_image=a["mean_image"][:, 1:]), "components has shape"),
    ("channels that differ", lambda a: a.update(std=a["std"][:2]), "std has shape"),
    ("two channels", lambda a: a.update(mean_image=a["mean_image"][:2]), r"mean_image has shape \(2, 5, 7\)"),
    ("a scalar", lambda a: a.update(mean=np.float32(1)), "mean has shape"),
    ("a flat mean image", lambda a: a.update(mean_image=a["mean_image"].ravel()), "mean_image has shape"),
    ("NaN", lambda a: a.update(mean=a["mean"] * np.nan), "mean is not finite"),
    ("another type", lambda a: a.update(mean=a["mean"].astype(str)), "mean is not finite"),
    ("a broken count", lambda a: a.update(count=np.array([1, 2])), "count is not"),
    ("pickled code", lambda a: a.update(mean=np.array([print], dtype=object)), "allow_pickle"),
]


@pytest.mark.parametrize(("name", "change", "message"), BROKEN, ids=[row[0] for row in BROKEN])
def test_broken_files_are_refused(table, tmp_path, name, change, message):
    content = arrays(table)
    change(content)
    np.savez(tmp_path / "x.npz", **content)
    with pytest.raises(DataError, match=message) as raised:
        Statistics.load(tmp_path / "x.npz")
    assert "x.npz" in str(raised.value)


def test_other_files_are_refused(table, tmp_path):
    path = tmp_path / "x.npz"
    with pytest.raises(DataError, match="no such file"):
        Statistics.load(path)
    with pytest.raises(DataError, match="not a file of statistics"):
        Statistics.load(tmp_path)
    compute(table, size=SIZE).save(path)
    data = path.read_bytes()
    np.save(tmp_path / "one.npy", np.arange(3))
    for content in (b"", b"hello", b"PK\x03\x04", (tmp_path / "one.npy").read_bytes(), *(data[:n] for n in (40, 900))):
        path.write_bytes(content)
        with pytest.raises(DataError, match=r"x\.npz"):
            Statistics.load(path)
    path.write_bytes(data[:1500] + bytes(64) + data[1564:])
    with pytest.raises(DataError, match=r"x\.npz"):
        Statistics.load(path)
