"""The Gaussian VAE beyond what its chapter shows: bad input, shapes, extremes, memory, the network of the assignment, resuming."""

import dataclasses
import math
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from genbook import data, training, vae
from genbook.families import Job
from genbook.images import nearest, scale_pixels, show_pixels
from genbook.vae import gaussian as gaussian_vae
from genbook.vae import gaussian_model
from genbook.vae.gaussian import RECIPES, interpolate
from genbook.vae.gaussian_model import (
    DiagonalGaussianDistribution,
    GaussianVAE,
    bits_per_dimension,
    elbo_objective,
)
from genbook.vae.importance import importance_log_likelihood, log_importance_weights
from genbook.vae.latents import latent_path


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images():
    return data.toy_house_numbers(40, seed=1).images


@pytest.fixture(scope="module")
def x(images):
    return scale_pixels(images)


@pytest.fixture
def model():
    return GaussianVAE().eval()


# The distribution


@pytest.mark.parametrize("shape", [(4,), (4, 32), (4, 3, 8, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distribution_agrees_with_torch(shape, dtype):
    mean, logvar, value = torch.randn(3, *shape, dtype=dtype)
    ours, theirs = DiagonalGaussianDistribution(mean, logvar), Normal(mean, torch.exp(0.5 * logvar))
    rest = tuple(range(1, len(shape)))
    expected = (
        -theirs.log_prob(value),
        kl_divergence(theirs, Normal(torch.zeros_like(mean), torch.ones_like(mean))),
    )
    for ours_is, each in zip((ours.nll(value), ours.kl()), expected, strict=True):
        assert ours_is.shape == (4,) and ours_is.dtype == dtype
        torch.testing.assert_close(ours_is, each.sum(rest) if rest else each, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours.std, theirs.scale)
    torch.testing.assert_close(ours.var, theirs.variance)
    assert ours.mode() is ours.mean and ours.sample().shape == shape


def test_distribution_without_logvar_has_variance_one():
    p = DiagonalGaussianDistribution(torch.randn(2, 3, 4, 4))
    assert p.logvar.eq(0).all() and p.var.eq(1).all() and p.std.eq(1).all()
    torch.testing.assert_close(p.nll(p.mean), torch.full((2,), 24 * math.log(2 * math.pi)))


def test_nll_of_the_constant_is_in_every_bound():
    p = DiagonalGaussianDistribution(torch.zeros(1, 3, 32, 32, dtype=torch.float64))
    assert round(p.nll(p.mode(), (1, 2, 3)).item(), 2) == 2822.98


@pytest.mark.parametrize("dims", [(1, 2, 3), [1, 2, 3], (2, 3), (1,)])
def test_nll_sums_over_the_axes_it_is_told(dims):
    p, value = DiagonalGaussianDistribution(*torch.randn(2, 2, 3, 4, 5)), torch.randn(2, 3, 4, 5)
    expected = -Normal(p.mean, p.std).log_prob(value).sum(tuple(dims))
    torch.testing.assert_close(p.nll(value, dims), expected)


@pytest.mark.parametrize(
    ("given", "kept"),
    [(-1e3, -30.0), (-30.0, -30.0), (0.5, 0.5), (20.0, 20.0), (1e3, 20.0), (float("inf"), 20.0)],
)
def test_logvar_is_clamped(given, kept):
    p = DiagonalGaussianDistribution(torch.zeros(1, 2), torch.full((1, 2), given))
    assert p.logvar.eq(kept).all() and all(
        t.isfinite().all() for t in (p.std, p.var, p.kl(), p.nll(p.mean), p.sample())
    )


def test_draws_have_the_moments_and_pass_gradients():
    mean, logvar = (
        torch.tensor([[1.0, -2.0]], requires_grad=True),
        torch.tensor([[0.0, -2.0]], requires_grad=True),
    )
    p = DiagonalGaussianDistribution(mean.expand(50_000, 2), logvar.expand(50_000, 2))
    drawn = p.sample()
    torch.testing.assert_close(drawn.mean(0), mean[0], rtol=0, atol=0.02)
    torch.testing.assert_close(drawn.var(0), logvar[0].exp(), rtol=0.03, atol=0)
    by_mean, by_logvar = torch.autograd.grad(drawn.square().mean(0).sum(), (mean, logvar))
    torch.testing.assert_close(by_mean, 2 * mean, rtol=0.05, atol=0.05)  # of m² + s², by m
    torch.testing.assert_close(by_logvar, logvar.exp(), rtol=0.05, atol=0.02)  # and by log s²


@pytest.mark.parametrize("shape", [(), (4,), (1, 4), (2, 3), (2, 4, 1)])
def test_logvar_of_another_shape_is_refused(shape):
    with pytest.raises(ValueError, match=r"logvar must have the shape of mean, \(2, 4\)"):
        DiagonalGaussianDistribution(torch.zeros(2, 4), torch.zeros(shape))


def test_sample_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"\(2, 4\), got \(4,\)"):
        DiagonalGaussianDistribution(torch.zeros(2, 4)).nll(torch.zeros(4))


def test_distribution_unpacks_into_the_pair_of_the_other_chapters():
    mean, logvar = torch.randn(2, 3, 4)
    unpacked = tuple(DiagonalGaussianDistribution(mean, logvar))
    assert unpacked[0] is mean and torch.equal(unpacked[1], logvar)


# Pixels and bits


def test_pixels_there_and_back():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    scaled = scale_pixels(levels)
    assert scaled.dtype == torch.float32 and scaled.min() == -1 and scaled.max() == 1
    assert torch.equal((show_pixels(scaled) * 255).round().to(torch.uint8), levels)
    assert torch.equal(show_pixels(torch.tensor([-5.0, 5.0])), torch.tensor([0.0, 1.0]))
    with pytest.raises(ValueError, match="uint8"):
        scale_pixels(levels.float())


@pytest.mark.parametrize("sigma", [1.0, 0.1, 0.01, 0.004])
def test_bits_are_never_fewer_than_those_of_the_exact_probability(sigma):
    x, mu = (
        torch.randint(0, 256, (500,)).double() / 127.5 - 1,
        0.5 * torch.randn(500, dtype=torch.float64),
    )
    mu = x + sigma * mu
    half = gaussian_model.BIN / 2
    exact = -(Normal(mu, sigma).cdf(x + half) - Normal(mu, sigma).cdf(x - half)).log2()
    bits = bits_per_dimension(Normal(mu, sigma).log_prob(x), 2 * math.log(sigma), 1)
    assert (bits >= exact - 1e-9).all()
    assert (bits - exact).mean() < (0.01 if sigma >= 0.01 else 0.1)


def test_variance_one_costs_more_than_eight_bits():
    assert 8.3 < bits_per_dimension(torch.tensor(-1536 * math.log(2 * math.pi))).item() < 8.4
    uniform = torch.tensor(-3072 * math.log(256 * gaussian_model.BIN))  # flat over the 256 bins
    assert bits_per_dimension(uniform, 50.0).item() == pytest.approx(8.0, abs=1e-5)


# The network


def test_network_is_the_assignments(model, x):
    shapes, counts = [], []
    for layer in model.encoder:
        if isinstance(layer, nn.Conv2d):
            assert (
                layer.kernel_size == (4, 4) and layer.stride == (2, 2) and layer.padding == (1, 1)
            )
            shapes.append(layer.out_channels)
    assert shapes == [32, 64, 128, 256]
    assert [type(layer) for layer in model.encoder[:3]] == [nn.Conv2d, nn.LeakyReLU, nn.BatchNorm2d]
    assert all(
        layer.negative_slope == 0.2 for layer in model.modules() if isinstance(layer, nn.LeakyReLU)
    )
    assert (
        (model.mean.in_features, model.mean.out_features)
        == (model.logvar.in_features, model.logvar.out_features)
        == (1024, 32)
    )
    assert model.decoder[0].out_features == 1024
    assert [layer.out_channels for layer in model.decoder if isinstance(layer, nn.Conv2d)] == [
        128,
        64,
        32,
        3,
    ]
    assert isinstance(model.decoder[-1], nn.Conv2d)  # a mean may be any real number
    with torch.no_grad():
        counts = [
            tuple(h.shape[1:]) for h in (model.encoder(x[:2]), model.decoder(torch.zeros(2, 32)))
        ]
    assert counts == [(1024,), (3, 32, 32)]
    assert {name.split(".")[0] for name, _ in model.named_parameters()} == {
        "encoder",
        "mean",
        "logvar",
        "decoder",
    }


def test_shapes(model, x):
    q = model.encode(x)
    assert isinstance(q, DiagonalGaussianDistribution) and q.mean.shape == q.logvar.shape == (
        40,
        32,
    )
    p = model.decode(q.sample())
    assert (
        isinstance(p, DiagonalGaussianDistribution)
        and p.mean.shape == x.shape
        and p.var.eq(1).all()
    )
    mode, nll, kl = model(x)
    assert (
        mode.shape == x.shape
        and nll.shape == kl.shape == (40,)
        and (nll > 0).all()
        and (kl >= 0).all()
    )
    assert model.sample(3).shape == (3, 3, 32, 32)
    assert model.log_likelihood(x[:5], 3).shape == (5,)
    assert model.encode(x[:1]).mean.shape == (1, 32)


@pytest.mark.parametrize("method", ["encode", "forward", "log_likelihood"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (torch.zeros(2, 1, 32, 32), r"\(B, 3, 32, 32\), got \(2, 1, 32, 32\)"),
        (torch.zeros(2, 3, 28, 28), r"\(B, 3, 32, 32\), got \(2, 3, 28, 28\)"),
        (torch.zeros(3, 32, 32), r"\(B, 3, 32, 32\), got \(3, 32, 32\)"),
        (torch.zeros(2, 3, 32, 32, dtype=torch.uint8), "scale_pixels"),
        (torch.full((2, 3, 32, 32), float("nan")), "finite"),
        (torch.full((2, 3, 32, 32), float("inf")), "finite"),
    ],
)
def test_bad_images_are_refused(model, method, bad, message):
    arguments = (bad, 5) if method == "log_likelihood" else (bad,)
    with pytest.raises(ValueError, match=message):
        getattr(model, method)(*arguments)


@pytest.mark.parametrize("K", [0, -1])
def test_bad_numbers_are_refused(model, x, K):
    with pytest.raises(ValueError, match=f"K must be at least 1, got {K}"):
        model.log_likelihood(x, K)
    with pytest.raises(ValueError, match=f"n must be at least 1, got {K}"):
        model.sample(K)


@pytest.mark.parametrize("shape", [(32,), (2, 31), (2, 3, 32)])
def test_bad_latents_are_refused(model, shape):
    with pytest.raises(ValueError, match=r"\(B, 32\)"):
        model.decode(torch.zeros(shape))


def test_log_likelihood_is_the_average_of_weights(model, x):
    torch.manual_seed(3)
    estimate = model.log_likelihood(x[:8], 16)  # one batch of images, one of draws: the same noise
    torch.manual_seed(3)
    with torch.no_grad():
        log_w = log_importance_weights(model, x[:8], 16)
    torch.testing.assert_close(estimate, torch.logsumexp(log_w, 1) - math.log(16))
    torch.manual_seed(3)
    torch.testing.assert_close(
        estimate, importance_log_likelihood(model, x[:8], 16, batch_size=8, chunk=16)
    )


def test_log_likelihood_is_above_the_bound_and_needs_no_gradient(model, x):
    _, nll, kl = model(x)
    estimate = model.log_likelihood(x, 50)
    assert not estimate.requires_grad and estimate.mean() > -(nll + kl).mean()


MEMORY = """
import re, sys, torch
from genbook.vae import GaussianVAE


def peak():  # of this process; ru_maxrss would begin at that of the process that started it
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])


torch.manual_seed(0)
torch.set_num_threads(1)
model, n, K = GaussianVAE().eval(), int(sys.argv[1]), int(sys.argv[2])
x = torch.rand(n, 3, 32, 32) * 2 - 1
model.log_likelihood(x[:8], 16)
before = peak()
assert model.log_likelihood(x, K).isfinite().all()
print(before, peak())
"""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /proc")
@pytest.mark.parametrize(("n", "K"), [(16, 200), (16, 400), (2000, 1)])
def test_memory_grows_neither_with_images_nor_with_draws(n, K):
    """Beside the images themselves: what one chunk needs, whatever the number of chunks. Far below the 2 GB that are allowed."""
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(n), str(K)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    before, peak = (int(kilobytes) / 1024 for kilobytes in done.stdout.split())
    assert (
        peak - before < 400 and peak < 1500
    )  # of which the check for NaN takes one copy of the images


def test_training_mode_differs_from_evaluation(x):
    """BatchNorm: what is measured must be measured in evaluation mode, which `build` returns."""
    model = GaussianVAE()
    with torch.no_grad():
        for _ in range(5):
            model(x)
        assert not torch.allclose(model.encode(x[:8]).mean, model.encode(x).mean[:8], atol=1e-3)
        model.eval()
        torch.testing.assert_close(
            model.encode(x[:8]).mean, model.encode(x).mean[:8], rtol=1e-4, atol=1e-5
        )


# The learned variance


def test_learned_variance_is_one_number(x):
    model = GaussianVAE(learned_variance=True).eval()
    assert model.output_logvar == 0 and model.decode(torch.zeros(2, 32)).var.eq(1).all()
    model.variance.data.fill_(math.log(0.04) / model.variance_gain)
    p = model.decode(torch.randn(2, 32))
    torch.testing.assert_close(p.var, torch.full_like(p.var, 0.04))
    model(x)[1].mean().backward()
    assert model.variance.grad.isfinite() and model.variance.grad != 0


def test_the_course_s_name_is_an_alias():
    assert vae.VAE is GaussianVAE


def test_models_start_alike():
    plain, sigma = (RECIPES[name].model() for name in ("vae-svhn", "vae-svhn-sigma"))
    theirs = sigma.state_dict()
    assert theirs.keys() - plain.state_dict().keys() == {"variance"}
    assert all(torch.equal(value, theirs[name]) for name, value in plain.state_dict().items())


def test_recipes_are_the_assignments():
    plain, sigma = RECIPES["vae-svhn"], RECIPES["vae-svhn-sigma"]
    assert (
        plain.latent,
        plain.lr,
        plain.batch_size,
        plain.epochs,
        plain.optimizer,
        plain.seed,
    ) == (32, 1e-4, 64, 30, "adam", 0)
    assert plain.sample_epochs == tuple(range(0, 31, 5)) and plain.eval_samples == 200
    assert dataclasses.replace(plain, name=sigma.name, learned_variance=True) == sigma


def test_loss_is_the_negative_bound_of_the_levels(images):
    model = GaussianVAE()
    loss, terms = elbo_objective(model, images)
    torch.testing.assert_close(loss, -terms["elbo"])
    torch.testing.assert_close(loss, terms["nll"] + terms["kl"])
    assert loss > 2822


def test_bf16_training_step_keeps_the_sums_in_float32(images):
    """A squared error of hundreds of nats summed in bfloat16 would be wrong by several."""
    model = GaussianVAE()
    with torch.autocast("cpu", torch.bfloat16):
        torch.manual_seed(0)
        mode, nll, kl = model(scale_pixels(images))
    assert mode.dtype == nll.dtype == kl.dtype == torch.float32
    torch.manual_seed(0)
    expected = elbo_objective(model, images)[0]
    assert abs((nll + kl).mean() - expected) < 5  # the noise of products in bfloat16, of 2,900


def test_two_formats_in_memory_train_alike(images):
    """`channels_last` and the threads of a sum change nothing but the last digits."""
    ends = []
    for channels_last in (False, True):
        result = training.fit(
            RECIPES["vae-svhn"].model(), elbo_objective, images, epochs=2, batch_size=8, lr=1e-4, device="cpu", channels_last=channels_last, progress=False
        )  # fmt: skip
        ends.append(result.history[-1]["train_loss"])
    assert ends[0] == pytest.approx(ends[1], abs=0.5)


# Paths


@pytest.mark.parametrize("spherical", [False, True])
@pytest.mark.parametrize("shape", [(32,), (1, 32)])
def test_interpolation_begins_and_ends_where_it_should(model, spherical, shape):
    z_1, z_2 = torch.randn(shape), torch.randn(shape)
    shown = interpolate(model, z_1, z_2, 5, spherical=spherical)
    assert shown.shape == (5, 3, 32, 32) and not shown.requires_grad
    with torch.no_grad():
        ends = model.decode(torch.stack([z_1.flatten(), z_2.flatten()])).mode()
    torch.testing.assert_close(shown[[0, -1]], ends, rtol=1e-4, atol=1e-5)


def test_straight_path_is_even():
    z_1, z_2 = torch.randn(2, 7)
    path = latent_path(z_1, z_2, 4)
    torch.testing.assert_close(path.diff(dim=0), ((z_2 - z_1) / 3).expand(3, 7))


def test_arc_of_nearly_equal_or_opposite_ends():
    z = torch.randn(8)
    torch.testing.assert_close(latent_path(z, z, 3, spherical=True), z.expand(3, 8))
    torch.testing.assert_close(latent_path(z, 2 * z, 3, spherical=True)[1], 1.5 * z)
    with pytest.raises(ValueError, match="opposite"):
        latent_path(z, -z, 3, spherical=True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), torch.zeros(4), 5), "3 and 4 numbers"),
        ((torch.zeros(3), torch.zeros(3), 1), "at least 2"),
    ],
)
def test_bad_paths_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        latent_path(*arguments)


# The record


def test_nearest_finds_the_image_itself(images, x):
    distances, indices = nearest(x[:5], images, k=2)
    assert torch.equal(indices[:, 0], torch.arange(5)) and (distances[:, 0] < 2e-3).all()
    brute = (x[:5, None] - x[None]).square().mean((2, 3, 4)).sqrt().sort(1)
    torch.testing.assert_close(distances[:, 1], brute.values[:, 1], rtol=1e-3, atol=1e-4)
    assert torch.equal(indices[:, 1], brute.indices[:, 1])


def test_smoke_run_keeps_what_the_chapter_shows(tmp_path):
    recipe = dataclasses.replace(
        RECIPES["vae-svhn-sigma"].smoke(),
        epochs=1,
        sample_epochs=(0, 1),
        eval_images=8,
        eval_samples=2,
    )
    run = gaussian_vae.train(recipe, Job(tmp_path / recipe.name, device="cpu", progress=False))
    names = {
        path.relative_to(run.path).as_posix() for path in run.path.rglob("*") if path.is_file()
    }
    pictures = {
        f"samples/epoch-{epoch:03d}-{kind}.png"
        for epoch in (0, 1)
        for kind in ("samples", "reconstructions")
    }
    assert names == {
        "run.json",
        "metrics.csv",
        "model.safetensors",
        "profile.csv",
        "spectrum.csv",
        "samples/neighbours.png",
        *pictures,
    }
    columns = {
        f"{split}_{term}" for split in ("train_set", "valid") for term in ("elbo", "nll", "kl")
    }
    assert (
        columns | {"epoch", "seconds", "output_std", "train_elbo", "train_nll", "train_kl"}
        <= run.metrics.keys()
    )
    assert run.recipe["family"] == "gaussian-vae"
    assert run.metrics["output_std"][0] == 1 > run.metrics["output_std"][-1]
    again = gaussian_vae.evaluate(run)
    assert again.keys() == run.record["metrics"].keys()
    assert all(
        abs(again[key]["value"] - run.figure(key)) <= run.record["metrics"][key]["tolerance"]
        for key in again
    )
    pixels = gaussian_vae.sample(run, 4, seed=1)
    assert pixels.shape == (4, 3, 32, 32) and pixels.min() >= 0 and pixels.max() <= 1
    assert torch.equal(pixels, gaussian_vae.sample(run, 4, seed=1))
