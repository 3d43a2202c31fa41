"""Views beyond what their chapter shows: the constants of CIFAR-10, shapes, extremes, draws."""

import os

import pytest
import torch

from genbook import data
from genbook.selfsupervised.views import (
    MEAN,
    STD,
    Augmentation,
    crop,
    draw_boxes,
    interpolation,
    plain_view,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.skipif(not os.environ.get("GENBOOK_DATA"), reason="GENBOOK_DATA is not set")
def test_mean_and_deviation_are_those_of_the_training_images(tmp_path, monkeypatch):
    """A copy of the data that was compressed again differs in the third decimal at most."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    if data.find("cifar10", "train") is None:
        pytest.skip("no cifar10 under GENBOOK_DATA")
    images = data.load("cifar10", "train+valid", download=False).images
    assert len(images) == 50_000
    for channel in range(3):  # exactly, from the counts of the 256 levels
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).double()
        level, share = torch.arange(256) / 255, counts / counts.sum()
        mean = (share * level).sum()
        deviation = (share * (level - mean) ** 2).sum().sqrt()
        assert abs(mean - MEAN[channel]) < 0.005
        assert abs(deviation - STD[channel]) < 0.005


@pytest.mark.parametrize("side", [1, 2, 8, 96])
def test_any_side(side):
    images = torch.randint(256, (5, 3, side, side), dtype=torch.uint8)
    views = Augmentation()(images)
    assert views.shape == images.shape and views.dtype == torch.float32
    assert views.isfinite().all() and views.min() > -1e-6 and views.max() < 1 + 1e-6
    assert plain_view(images).shape == images.shape


def test_no_images():
    images = torch.zeros(0, 3, 32, 32, dtype=torch.uint8)
    assert Augmentation()(images).shape == images.shape


def test_nothing_drawn_changes_nothing():
    images = torch.randint(256, (5, 3, 16, 16), dtype=torch.uint8)
    still = Augmentation(scale=(1.0, 1.0), jitter=(0.0,) * 4, p_mirror=0.0, p_grey=0.0)
    # a box of the whole area fits only where its ratio is nearly 1, and is the whole image in the end
    torch.testing.assert_close(still(images), images / 255, rtol=0, atol=1e-5)


def test_images_are_not_changed():
    images = torch.randint(256, (20, 3, 16, 16), dtype=torch.uint8)
    before = images.clone()
    Augmentation()(images)
    assert torch.equal(images, before)


def test_one_image_of_a_batch_does_not_depend_on_the_others():
    x, boxes = torch.rand(6, 3, 32, 32), draw_boxes(6, 32)
    together = crop(x, boxes)
    for i in range(6):
        alone = crop(x[i : i + 1], tuple(b[i : i + 1] for b in boxes))
        torch.testing.assert_close(alone[0], together[i])


def test_crop_under_autocast_stays_exact():
    x, boxes = torch.rand(4, 3, 32, 32), draw_boxes(4, 32)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(crop(x, boxes), crop(x, boxes)) and crop(x, boxes).dtype == torch.float32
        half = crop(x, boxes)
    assert torch.equal(half, crop(x, boxes))


def test_a_box_of_one_pixel():
    start = torch.tensor([0, 7, 31])
    rows = interpolation(start, torch.ones(3, dtype=torch.long), 32)
    assert torch.equal(rows.argmax(2), start[:, None].expand(3, 32)) and (rows.sum(2) == 1).all()
