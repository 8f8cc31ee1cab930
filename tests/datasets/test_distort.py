"""Distortions of digits: what they leave, what they move and by how much, and that they follow from the generator."""

import math

import pytest
import torch

from sightline.datasets.distort import (
    DISTORTIONS,
    SIZES,
    clutter,
    project,
    rotate,
    rotate_scale_translate,
    warp,
)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def blobs(batch=400):
    """A long bump along x, of a standard deviation of 5 by 2 pixels, in the middle."""
    axis = torch.arange(28) - 13.5
    blob = torch.exp(-(axis**2)[None] / 50 - (axis**2)[:, None] / 8)
    return blob.expand(batch, 1, 28, 28)


def moments(pictures):
    """Of pictures (B, 1, S, S): mass, centre (B, 2) from the middle, and covariance (B, 2, 2), all in pixels."""
    axis = torch.arange(pictures.shape[-1]) - (pictures.shape[-1] - 1) / 2
    places = torch.cartesian_prod(axis, axis).flip(-1)
    weights = pictures.flatten(1)
    mass = weights.sum(1)
    centre = weights @ places / mass[:, None]
    apart = places - centre[:, None]
    return mass, centre, torch.einsum("bn,bni,bnj->bij", weights, apart, apart) / mass[:, None, None]


def angles(pictures):
    """Of the long axis, in degrees from x towards y, -90 to 90."""
    covariance = moments(pictures)[2]
    return torch.atan2(2 * covariance[:, 0, 1], covariance[:, 0, 0] - covariance[:, 1, 1]).rad2deg() / 2


@pytest.mark.parametrize("name", DISTORTIONS)
def test_shape_range_and_type(name):
    digits = (255 * torch.rand(7, 1, 28, 28)).to(torch.uint8)
    before = digits.clone()
    pictures = DISTORTIONS[name](digits, generator())
    assert pictures.shape == (7, 1, SIZES[name], SIZES[name])
    assert pictures.dtype == torch.float32
    assert pictures.isfinite().all()
    assert 0 <= pictures.min() <= pictures.max() <= 1 + 1e-6
    assert torch.equal(digits, before)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_the_generator_decides(name):
    digits = torch.rand(5, 1, 28, 28)
    distort = DISTORTIONS[name]
    first = distort(digits, generator(1))
    torch.manual_seed(7)  # torch's own generator does not matter
    assert torch.equal(distort(digits, generator(1)), first)
    assert not torch.equal(distort(digits, generator(2)), first)


@pytest.mark.parametrize("name", DISTORTIONS)
def test_bytes_and_floats_are_the_same(name):
    digits = (255 * torch.rand(4, 1, 28, 28)).to(torch.uint8)
    distort = DISTORTIONS[name]
    assert torch.equal(distort(digits, generator()), distort(digits / 255, generator()))


@pytest.mark.parametrize("name", DISTORTIONS)
def test_a_batch_of_one(name):
    assert DISTORTIONS[name](torch.rand(1, 1, 28, 28), generator()).shape == (1, 1, SIZES[name], SIZES[name])


@pytest.mark.parametrize("name", DISTORTIONS)
def test_every_picture_differs(name):
    """One digit a hundred times gives a hundred pictures."""
    pictures = DISTORTIONS[name](blobs(100), generator()).flatten(1)
    assert len(pictures.unique(dim=0)) == 100


def test_no_rotation_is_the_identity():
    digits = torch.rand(3, 1, 28, 28)
    torch.testing.assert_close(rotate(digits, generator(), degrees=0), digits, rtol=0, atol=1e-4)


def test_rotation():
    """Uniform over -90 to 90 degrees about the middle; the mass stays."""
    pictures = rotate(blobs(), generator())
    mass, centre, _ = moments(pictures)
    found = angles(pictures)
    assert found.min() > -90
    assert found.max() < 90
    assert (found < -45).float().mean() == pytest.approx(0.25, abs=0.07)
    assert (found < 0).float().mean() == pytest.approx(0.5, abs=0.07)
    assert centre.abs().max() < 0.1
    torch.testing.assert_close(mass, moments(blobs())[0], rtol=0.03, atol=0)


def test_rotation_turns_by_its_angle():
    """The only random number is the angle: one draw scaled to the range."""
    found = angles(rotate(blobs(50), generator(), degrees=30))
    drawn = 60 * torch.rand(50, generator=generator()) - 30
    torch.testing.assert_close(found.abs(), drawn.abs(), rtol=0, atol=0.5)
    assert (torch.corrcoef(torch.stack([found, drawn]))[0, 1]).abs() > 0.999


def test_rotate_scale_translate():
    pictures = rotate_scale_translate(blobs(1000), generator())
    mass, centre, _ = moments(pictures)
    scale = (mass / moments(blobs(1))[0]).sqrt()
    found = angles(pictures)
    assert 0.69 < scale.min() < 0.72
    assert 1.18 < scale.max() < 1.22
    assert scale.mean() == pytest.approx(0.95, abs=0.02)
    assert 43 < found.abs().max() < 45.5
    room = (42 - 28 * scale) / 2
    assert (centre.abs() <= room[:, None] + 0.3).all()
    assert (centre / room[:, None]).abs().mean() == pytest.approx(0.5, abs=0.03)


def test_projection_of_unmoved_corners_scales():
    """With next to no jitter all that is left is the scale, 0.75 to 1."""
    mass, centre, covariance = moments(project(blobs(), generator(), sigma=1e-3))
    scale = (mass / moments(blobs(1))[0]).sqrt()
    assert 0.74 < scale.min() < 0.77
    assert 0.98 < scale.max() < 1.01
    assert centre.abs().max() < 0.05
    expected = moments(blobs(1))[2] * scale[:, None, None] ** 2
    torch.testing.assert_close(covariance, expected, rtol=0, atol=0.3)


def test_projections_do_not_fold_over():
    """Every frame stays convex: of each row and column what shows is one piece, and never little."""
    shown = project(torch.ones(2000, 1, 28, 28), generator())[:, 0]
    assert shown.sum((1, 2)).min() > 100
    for along in (1, 2):
        begun = (shown > 0).int().diff(dim=along, prepend=torch.zeros_like(shown.narrow(along, 0, 1)).int()) == 1
        assert begun.sum(along).max() == 1


def test_projections_move_corners():
    """The centre of the blob moves by pixels, and lines that were parallel are no more."""
    _, centre, _ = moments(project(blobs(1000), generator()))
    assert 0.5 < centre.std() < 4
    assert centre.mean(0).abs().max() < 0.3


def test_warp_without_shifts_scales():
    mass, centre, _ = moments(warp(blobs(), generator(), sigma=0))
    scale = (mass / moments(blobs(1))[0]).sqrt()
    assert 0.74 < scale.min() < 0.77
    assert 0.98 < scale.max() < 1.01
    assert centre.abs().max() < 0.05


def test_warp_moves_by_its_sigma():
    """The centre, between four control points, moves by less than each of them; a wilder warp moves it more."""
    spread = [moments(warp(blobs(1000), generator(), sigma=sigma))[1].std().item() for sigma in (0.5, 1.5)]
    assert 0.1 < spread[0] < 0.5
    assert spread[1] == pytest.approx(3 * spread[0], rel=0.2)


def test_warp_is_a_thin_plate_spline():
    """Against the library's other one, of the spatial transformer."""
    from sightline.backbone.spatial_transformer import ThinPlateSpline, sample

    digits, transform = torch.rand(6, 1, 28, 28), ThinPlateSpline(4)
    g = generator(3)
    scale = 0.75 + 0.25 * torch.rand(6, generator=g)
    shifts = 1.5 * torch.randn(6, 16, 2, generator=g)
    theta = (transform.control + shifts / 14) / scale[:, None, None]
    expected = sample(digits, transform.grid(theta.flatten(1), (28, 28)))
    torch.testing.assert_close(warp(digits, generator(3)), expected, rtol=0, atol=1e-3)


def test_clutter_holds_the_digit_and_pieces_of_others():
    """Digits of one value each: the own one fills a frame (but for brighter pieces), others show in 6x6 squares."""
    batch = 40
    values = (torch.arange(batch) + 1) / batch
    pictures = clutter(values.view(-1, 1, 1, 1).expand(batch, 1, 28, 28), generator(), pieces=3)[:, 0]
    for i in range(batch):
        own = pictures[i] == values[i]
        brighter = pictures[i] > values[i]
        assert (own | brighter).float().unfold(0, 28, 1).unfold(1, 28, 1).mean(
            (2, 3)
        ).max() == 1  # somewhere, a full frame
        foreign = pictures[i][~own & (pictures[i] > 0)]
        assert 0 < len(foreign) <= 3 * 36
        assert all(any(math.isclose(v, known, abs_tol=1e-6) for known in values) for v in foreign.unique().tolist())


def test_clutter_puts_digits_anywhere():
    pictures = clutter(torch.ones(3000, 1, 28, 28), generator(), pieces=0)[:, 0]
    rows, columns = (pictures.sum(along).gt(0).float().argmax(1) for along in (2, 1))
    for corner in (rows, columns):
        assert (corner.min(), corner.max()) == (0, 32)
        assert corner.float().mean() == pytest.approx(16, abs=0.7)
    assert (pictures.sum((1, 2)) == 28 * 28).all()


def test_pieces_are_of_the_digits():
    """Pieces are cut anywhere in a digit and keep its pixels: a piece of a ramp is a ramp."""
    ramp = (torch.arange(28) / 27).expand(2, 1, 28, 28) + 1  # brighter than nothing everywhere
    pictures = clutter(torch.stack([torch.zeros(1, 28, 28), ramp[0]]), generator(), pieces=1)[0, 0]
    rows, columns = pictures.nonzero().unbind(1)
    assert len(rows) == 36
    piece = pictures[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert piece.shape == (6, 6)
    torch.testing.assert_close(piece.diff(dim=1), torch.full((6, 5), 1 / 27), rtol=0, atol=1e-5)
