"""The minimax GAN beyond what its chapter shows: bad input, extremes, the networks of the report, modes that are missing, resuming."""

import math

import pytest
import torch
from torch import nn

from genbook import data
from genbook.gan import minimax as gan
from genbook.gan.minimax import (
    GAN,
    MLPDiscriminator,
    MLPGenerator,
    discriminator_objective,
    generator_objective,
)
from genbook.images import scale_pixels
from genbook.judges.classifier import class_probabilities
from genbook.measures import entropy


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images():
    return data.toy_digits(64, seed=1).images * 255


def test_networks_are_those_of_the_report():
    model = GAN()
    for part, widths in (
        (model.generator, [100, 128, 256, 512, 1024, 784]),
        (model.discriminator, [784, 512, 256, 1]),
    ):
        layers = [layer for layer in part if isinstance(layer, nn.Linear)]
        assert [layers[0].in_features, *(layer.out_features for layer in layers)] == widths
    assert [part.num_features for part in model.generator if isinstance(part, nn.BatchNorm1d)] == [
        256,
        512,
        1024,
    ]
    assert all(
        part.negative_slope == 0.2 for part in model.modules() if isinstance(part, nn.LeakyReLU)
    )
    assert isinstance(model.generator[-2], nn.Tanh)


@pytest.mark.parametrize("shape", [(2, 784), (2, 28, 28), (2, 3, 28, 28), (2, 1, 32, 32)])
def test_discriminator_refuses_other_images(shape):
    with pytest.raises(ValueError, match="x must be of shape"):
        MLPDiscriminator()(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 99), (100,), (2, 100, 1)])
def test_generator_refuses_other_latents(shape):
    with pytest.raises(ValueError, match=r"z must be of shape \(B, 100\)"):
        MLPGenerator()(torch.zeros(shape))


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        GAN().sample(0)


def test_images_that_are_scaled_already_are_refused(images):
    with pytest.raises(ValueError, match="uint8"):
        discriminator_objective(GAN(), images / 255)


def test_each_objective_reaches_its_own_part(images):
    model = GAN()
    discriminator_objective(model, images)[0].backward()
    assert all(p.grad is None for p in model.generator.parameters())
    model.discriminator.requires_grad_(False)
    model.discriminator.zero_grad()
    for saturating in (False, True):
        model.generator.zero_grad()
        generator_objective(model, images, saturating)[0].backward()
        assert all(p.grad is not None for p in model.generator.parameters())
        assert all(p.grad is None for p in model.discriminator.parameters())


@pytest.mark.parametrize("logit", [-200.0, 0.0, 200.0])
def test_losses_are_finite_at_any_logit(logit, images):
    """log D by way of D is minus infinity beyond a logit of −104 in float32."""
    model = GAN()
    with torch.no_grad():
        model.discriminator[-1].weight.zero_()
        model.discriminator[-1].bias.fill_(logit)
    loss, _ = discriminator_objective(model, images)
    torch.testing.assert_close(
        loss.item(), abs(logit) if logit else math.log(4), rtol=1e-5, atol=1e-5
    )
    assert (
        generator_objective(model, images)[0].isfinite()
        and generator_objective(model, images, True)[0].isfinite()
    )


@pytest.mark.parametrize("bf16", [False, True])
def test_metrics_are_probabilities(bf16, images):
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss, metrics = discriminator_objective(GAN(), images)
    assert loss.dtype == torch.float32 and set(metrics) == {"d_real", "d_fake"}
    assert all(0 < value < 1 for value in metrics.values())


def test_one_image_is_no_batch_for_batchnorm(images):
    """A single fake has no variance; torch says so rather than dividing by zero."""
    with pytest.raises(ValueError, match="more than 1 value"):
        generator_objective(GAN(), images[:1])
    assert GAN().eval().sample(1).shape == (1, 1, 28, 28)


def test_a_missing_mode_is_counted():
    assert entropy(torch.full((10,), 0.1)) == pytest.approx(math.log(10))
    nine = torch.cat([torch.full((9,), 1 / 9), torch.zeros(1)])
    assert entropy(nine) == pytest.approx(math.log(9)) and entropy(torch.eye(10)[0]) == 0


def test_classifier_knows_toy_digits():
    toy = data.toy_digits(2000, seed=3)
    judge = gan.train_classifier(toy.images * 255, toy.labels, epochs=4, precision="fp32")
    other = data.toy_digits(300, seed=4)
    probabilities = class_probabilities(judge, scale_pixels(other.images * 255))
    torch.testing.assert_close(probabilities.sum(1), torch.ones(300))
    assert (probabilities.argmax(1) == other.labels).float().mean() > 0.8


def test_the_game_of_a_generator_on_a_finite_space_ends_at_minus_log_4():
    """Alternating steps on logits, as in training, without either best response: q reaches p, D one half."""
    p = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)
    logit, free = (torch.zeros(4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    players = torch.optim.SGD([logit], lr=1.0), torch.optim.SGD([free], lr=0.1)

    def value():
        return (p * nn.functional.logsigmoid(logit)).sum() + (
            free.softmax(0) * nn.functional.logsigmoid(-logit)
        ).sum()

    for _ in range(4000):
        for player, sign in zip(players, (-1, 1)):
            player.zero_grad()
            (sign * value()).backward()
            player.step()
    torch.testing.assert_close(free.softmax(0).detach(), p, rtol=0, atol=1e-3)
    assert abs(value().item() + math.log(4)) < 1e-4
