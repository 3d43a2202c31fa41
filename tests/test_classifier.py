"""The judge of digits beyond what its chapter shows: bad input, shifts at the edge, resuming."""

import pytest
import torch

from genbook import data
from genbook.images import scale_pixels
from genbook.judges import classifier
from genbook.judges.classifier import (
    Classifier,
    class_features,
    class_probabilities,
    shifted,
)
from genbook.measures import total_variation


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28)])
def test_other_images_are_refused(shape):
    with pytest.raises(ValueError, match=r"x must be of shape \(B, 3, 32, 32\)"):
        Classifier(4)(torch.zeros(shape))


@pytest.mark.parametrize("by", [-1, 8])
def test_shifts_are_within_the_image(by):
    with pytest.raises(ValueError, match="by must be (from|at least) 0"):
        shifted(torch.zeros(2, 3, 8, 8), by)


def test_shifts_are_those_of_padding_and_cropping():
    x = torch.randn(200, 3, 8, 8)
    moved = shifted(x, 1)
    padded = torch.nn.functional.pad(x, (1, 1, 1, 1), mode="reflect")
    crops = torch.stack([padded[:, :, i : i + 8, j : j + 8] for i in range(3) for j in range(3)])
    hits = (crops == moved).all(dim=(2, 3, 4))  # (9, 200): which of the crops it is
    assert (hits.sum(0) == 1).all() and (hits.sum(1) > 5).all()


def test_total_variation():
    p = torch.softmax(3 * torch.randn(50, 10), 1)
    assert (total_variation(p, p) == 0).all()
    assert total_variation(torch.eye(10)[1], torch.eye(10)[2]) == 1
    q, r = p.roll(1, 0), p.roll(2, 0)
    torch.testing.assert_close(total_variation(p, q), total_variation(q, p))
    assert (total_variation(p, r) <= total_variation(p, q) + total_variation(q, r) + 1e-6).all()
    with pytest.raises(ValueError, match="the same classes"):
        total_variation(p, p[:, :9])


def test_in_pieces_as_at_once():
    model, x = Classifier(4).eval(), torch.randn(1001, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(class_probabilities(model, x), model(x).softmax(1))
        torch.testing.assert_close(class_features(model, x), model.features(x))
    assert class_features(model, x).min() >= 0


def test_images_that_are_scaled_already_are_refused():
    images = data.toy_house_numbers(4)
    with pytest.raises(ValueError, match=r"UInt8.*got the tuple \(float32 of shape"):
        classifier.objective(Classifier(4), (scale_pixels(images.images), images.labels))
