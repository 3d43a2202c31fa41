"""The WGAN beyond what its chapter shows: the penalty differentiated twice in every precision, bad input, resuming, batch statistics."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genbook import data
from genbook.gan import wgan
from genbook.gan.critics import lp_reg, vf_wasserstein_distance
from genbook.gan.smooth_layers import HalvingConv2d, LeakyReLU
from genbook.gan.wgan import (
    WGAN,
    Critic,
    Generator,
    critic_objective,
    generator_objective,
    update_batch_statistics,
)
from genbook.images import roughness, scale_pixels


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images():
    return data.toy_house_numbers(32, seed=1).images


def plain(critic):
    """The critic of the course: PyTorch's own layers, the same weights."""
    width = critic.last.in_channels // 4
    network = nn.Sequential(
        nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
        nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(4 * width, 1, 4), nn.Flatten(0),
    )  # fmt: skip
    with torch.no_grad():
        for mine, theirs in zip(network.parameters(), critic.parameters(), strict=True):
            mine.copy_(theirs)
    return network.to(critic.last.weight.dtype)


def gradients(critic, real, fake, gain=1.0, bf16=False):
    """Of the critic's loss by its weights, in float64, the places of the penalty always the same."""
    places = torch.rand(len(real), 1, 1, 1, generator=torch.Generator().manual_seed(5))
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        distance = vf_wasserstein_distance(real, fake, critic)
        between = torch.lerp(fake, real, places.to(real.dtype)).requires_grad_()
        score = gain * critic(between).to(real.dtype)
        (slope,) = torch.autograd.grad(score.sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).clamp(min=0).square().mean()
    assert penalty > 1e-3
    found = torch.autograd.grad(10 * penalty - distance, list(critic.parameters()))
    return [g.double() for g in found]


def error(found, exact):
    """Of all gradients together: relative, and the cosine between the two."""
    a, b = (torch.cat([g.flatten() for g in each]) for each in (found, exact))
    return ((a - b).norm() / b.norm()).item(), F.cosine_similarity(a, b, dim=0).item()


@pytest.fixture
def batch():
    """Real images, and fakes that differ from them, as in training."""
    real = scale_pixels(data.toy_house_numbers(16, seed=2).images)
    return real, torch.tanh(torch.randn(16, 3, 32, 32) + real.roll(1, 0))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(("dtype", "within"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_double_backward_is_that_of_plain_layers(dtype, within, layout, batch):
    critic = Critic().to(dtype)
    reference = plain(critic).double()
    real, fake = (x.to(dtype).contiguous(memory_format=layout) for x in batch)
    found = gradients(critic.to(memory_format=layout), real, fake, gain=100)
    exact = gradients(reference, real.double(), fake.double(), gain=100)
    assert error(found, exact)[0] < within


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("gain", [50.0, 200.0, 1000.0])
def test_double_backward_in_bf16_is_right(gain, layout, batch):
    """Rounding to 8 bits, three times through, costs a few per cent; plain layers in bf16 lose as much."""
    critic = Critic()
    reference = plain(critic)
    exact = gradients(plain(critic).double(), *(x.double() for x in batch), gain=gain)
    real, fake = (x.contiguous(memory_format=layout) for x in batch)
    ours, direction = error(
        gradients(critic.to(memory_format=layout), real, fake, gain, bf16=True), exact
    )
    theirs, _ = error(gradients(reference, *batch, gain, bf16=True), exact)
    assert ours < 0.05 and direction > 0.998 and ours < 1.5 * theirs + 0.005


def test_penalty_of_the_book_in_bf16_is_right(batch):
    """`lp_reg` itself under autocast, against float64, with a critic whose slopes are above 1."""
    critic = Critic()
    with torch.no_grad():
        critic.last.weight.mul_(100)
    reference, values = plain(critic).double(), []
    for network, samples, bf16 in (
        (critic, batch, True),
        (reference, [x.double() for x in batch], False),
    ):
        places = torch.rand(
            len(samples[0]), 1, 1, 1, generator=torch.Generator().manual_seed(3)
        ).to(samples[0].dtype)
        with (
            pytest.MonkeyPatch.context() as patch,
            torch.autocast("cpu", torch.bfloat16, enabled=bf16),
        ):
            patch.setattr(
                torch, "rand", lambda *a, **k: places
            )  # the same places in both precisions
            value = lp_reg(*samples, network)
        found = torch.autograd.grad(value, list(network.parameters()), allow_unused=True)
        values.append(
            (value.item(), [torch.zeros(1).double() if g is None else g.double() for g in found])
        )
    (ours, mine), (exact, theirs) = values
    assert abs(ours / exact - 1) < 0.02 and value.dtype == torch.float64
    assert (
        error(
            mine, [g if g.shape == m.shape else torch.zeros_like(m) for g, m in zip(theirs, mine)]
        )[0]
        < 0.05
    )


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (5, 3, 8, 8), (2, 7, 4, 6), (3, 1, 2, 2)])
def test_convolution_is_that_of_torch(shape):
    ours = HalvingConv2d(shape[1], 6).double()
    theirs = nn.Conv2d(shape[1], 6, 4, 2, 1).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(shape[0], 6, shape[2] // 2, shape[3] // 2, dtype=torch.float64)
    torch.testing.assert_close(ours(x), theirs(x))
    for one, other in zip(
        *(
            torch.autograd.grad((layer(x) * weight).sum(), [x, *layer.parameters()])
            for layer in (ours, theirs)
        )
    ):
        torch.testing.assert_close(one, other)


def test_activation_is_that_of_torch():
    x = torch.randn(100, dtype=torch.float64, requires_grad=True)
    for slope in (0.2, 0.01):
        torch.testing.assert_close(LeakyReLU(slope)(x), F.leaky_relu(x, slope))
    assert torch.autograd.gradcheck(LeakyReLU(0.2), (x,))
    (g,) = torch.autograd.grad(LeakyReLU(0.2)(x).sum(), x, create_graph=True)
    assert not g.requires_grad or torch.autograd.grad(g.sum(), x, allow_unused=True)[0] is None


def test_third_derivative_is_refused_not_wrong():
    layer, x = (
        HalvingConv2d(3, 2).double(),
        torch.randn(1, 3, 4, 4, dtype=torch.float64, requires_grad=True),
    )
    (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(g.square().sum(), layer.weight, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(second.square().sum(), layer.weight)


def test_networks_are_those_of_the_course():
    model = WGAN()
    shapes = [tuple(p.shape) for p in model.critic.parameters() if p.ndim == 4]
    assert shapes == [(64, 3, 4, 4), (128, 64, 4, 4), (256, 128, 4, 4), (1, 256, 4, 4)]
    shapes = [tuple(p.shape) for p in model.generator.parameters() if p.ndim == 4]
    assert shapes == [(100, 256, 4, 4), (256, 128, 4, 4), (128, 64, 4, 4), (64, 3, 4, 4)]
    x = model.sample(3)
    assert x.shape == (3, 3, 32, 32) and x.abs().max() <= 1 and model.critic(x).shape == (3,)
    torch.testing.assert_close(model.critic(x), plain(model.critic)(x))
    assert sum(isinstance(part, nn.BatchNorm2d) for part in model.critic.modules()) == 0


@pytest.mark.parametrize("shape", [(2, 3, 28, 28), (2, 1, 32, 32), (3, 32, 32), (0, 32)])
def test_critic_refuses_other_images(shape):
    with pytest.raises(ValueError, match="x must be of shape"):
        Critic(4)(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 99), (100,), (2, 100, 1, 1)])
def test_generator_refuses_other_latents(shape):
    with pytest.raises(ValueError, match=r"z must be of shape \(B, 100\)"):
        Generator(100, 4)(torch.zeros(shape))


def test_no_samples_are_refused():
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        WGAN(width=4).sample(0)


def test_objectives_refuse_images_that_are_scaled_already(images):
    with pytest.raises(ValueError, match="uint8"):
        critic_objective(WGAN(width=4), scale_pixels(images))


def test_each_objective_reaches_its_own_part(images):
    model = WGAN(width=4)
    loss, _ = critic_objective(model, images)
    loss.backward()
    assert all(p.grad is None for p in model.generator.parameters())
    model.critic.requires_grad_(False)
    model.critic.zero_grad()
    loss, metrics = generator_objective(model, images)
    loss.backward()
    assert metrics == {} and all(p.grad is not None for p in model.generator.parameters())
    assert all(p.grad is None for p in model.critic.parameters())


def test_more_penalty_makes_a_flatter_critic(images):
    slopes = []
    for weight in (0.0, 10.0):
        torch.manual_seed(0)
        model = WGAN(width=8)
        adam = torch.optim.Adam(model.critic.parameters(), lr=1e-2)
        for _ in range(20):
            loss, _ = critic_objective(model, images, penalty_weight=weight)
            adam.zero_grad()
            loss.backward()
            adam.step()
        slopes.append(wgan.slopes(model.critic, scale_pixels(images)).mean())
    assert slopes[1] < 0.5 * slopes[0]


def test_slopes_are_those_of_the_critic():
    critic, x = Critic(4).double(), torch.randn(3, 3, 32, 32, dtype=torch.float64)
    expected = [
        torch.autograd.functional.jacobian(lambda one: critic(one[None]).sum(), each).norm()
        for each in x
    ]
    with torch.no_grad():  # as evaluation calls it
        torch.testing.assert_close(wgan.slopes(critic, x), torch.stack(expected))


def test_updating_gives_the_statistics_of_the_weights():
    model = WGAN(width=8)
    with torch.no_grad():
        for p in model.generator.parameters():
            p.add_(0.1 * torch.randn_like(p))
    model.eval()
    update_batch_statistics(model.generator, model.draw, batches=40)
    assert not model.generator.training and all(
        part.momentum == 0.1
        for part in model.generator.modules()
        if isinstance(part, nn.BatchNorm2d)
    )
    z = model.draw(500)
    with torch.no_grad():
        updated = model.generator(z)
        own = model.generator.train()(z)
    assert (updated - own).abs().mean() < 0.02


def test_roughness():
    flat, board = torch.full((1, 3, 32, 32), 0.3), torch.ones(1, 3, 32, 32)
    board[:, :, ::2, ::2] = board[:, :, 1::2, 1::2] = -1
    assert roughness(flat) == 0 and roughness(board) == 4
