"""The bound and its tighter relative beyond what the chapters show: bad input, shapes, gradients, chunks, extremes."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from genbook.likelihoods import log_mean_exp
from genbook.vae.binarised_mnist import RECIPES, BernoulliVAE
from genbook.vae.elbo import active_units, elbo_terms, reparameterise
from genbook.vae.importance import (
    effective_sample_size,
    importance_log_likelihood,
    iwae_bound,
    log_importance_weights,
)

SIGMA = 0.5


class LinearModel(nn.Module):
    """x = slope·z + noise, with q the posterior at slope 1, shifted and stretched; keeps every log-weight it is asked for."""

    def __init__(self, shift=0.2, stretch=1.3):
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        self.gain = nn.Parameter(torch.tensor(1 / (1 + SIGMA**2), dtype=torch.float64))
        self.shift, self.logvar = shift, 2 * math.log(stretch * SIGMA / math.sqrt(1 + SIGMA**2))
        self.asked, self.most = [], 0

    def encode(self, x):
        mu = self.gain * x + self.shift
        return mu, torch.full_like(mu, self.logvar)

    def log_p_x_given_z(self, x, z):
        x = x[:, None] if z.ndim == 3 else x
        log_likelihood = Normal(self.slope * z, SIGMA).log_prob(x).sum(-1)
        mu, logvar = self.encode(x)
        q = Normal(mu, torch.exp(0.5 * logvar))
        log_w = log_likelihood + (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).sum(-1)
        self.asked.append((x.flatten(1), log_w.detach()))
        self.most = max(self.most, z[..., 0].numel())
        return log_likelihood

    def log_p_x(self, x):
        return Normal(torch.zeros((), dtype=x.dtype), math.sqrt(1 + SIGMA**2)).log_prob(x).sum(-1)


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(6, 3, dtype=torch.float64)


@pytest.fixture(scope="module")
def vae():
    torch.manual_seed(0)
    return RECIPES["vae-bmnist"].model()


# Reparameterisation


def test_reparameterise_refuses_broadcasting():
    with pytest.raises(ValueError, match=r"\(4, 3\) and \(3,\)"):
        reparameterise(torch.zeros(4, 3), torch.zeros(3))


def test_reparameterise_uses_the_noise_it_is_given():
    mu, logvar, noise = torch.randn(3, 5, 4)
    torch.testing.assert_close(
        reparameterise(mu, logvar, noise), mu + torch.exp(logvar).sqrt() * noise
    )
    assert torch.equal(reparameterise(mu, logvar, torch.zeros_like(mu)), mu)
    narrow = reparameterise(
        mu, torch.full_like(mu, -200.0), noise
    )  # a variance below what single precision holds
    assert torch.equal(narrow, mu)


@pytest.mark.parametrize("shape", [(4,), (2, 4), (2, 3, 4)])
def test_reparameterise_keeps_shape_and_precision(shape):
    for dtype in (torch.float32, torch.float64):
        z = reparameterise(torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
        assert z.shape == shape and z.dtype == dtype


def test_reparameterise_derivatives():
    mu, logvar = torch.randn(2, 5, 3, dtype=torch.float64)
    noise = torch.randn_like(mu)
    for tensor in (mu, logvar):
        tensor.requires_grad_()
    assert torch.autograd.gradcheck(lambda m, v: reparameterise(m, v, noise), (mu, logvar))


# The two terms


def test_unknown_kind_of_divergence_is_refused(vae):
    with pytest.raises(ValueError, match='"analytic" or "mc", got \'exact\''):
        elbo_terms(vae, torch.zeros(1, 1, 28, 28), kl="exact")


def test_more_draws_of_the_divergence_are_less_noisy(vae):
    images = torch.zeros(1, 1, 28, 28).expand(400, 1, 28, 28)
    with torch.no_grad():
        one, many = (elbo_terms(vae, images, "mc", draws)[1] for draws in (1, 10))
        exact = elbo_terms(vae, images[:1])[1].item()
    assert 5 < one.var() / many.var() < 20
    assert abs(many.mean() - exact) < 4 * many.std() / 20
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        elbo_terms(vae, images[:1], "mc", 0)


def test_terms_agree_with_distributions(vae):
    images = (torch.rand(7, 1, 28, 28) < 0.2).to(torch.uint8)
    mu, logvar = vae.encode(images)
    log_likelihood, kl = elbo_terms(vae, images)
    assert log_likelihood.shape == kl.shape == (7,)
    wanted = kl_divergence(
        Normal(mu, torch.exp(0.5 * logvar)), Normal(torch.zeros(()), torch.ones(()))
    ).sum(1)
    torch.testing.assert_close(kl, wanted)
    assert (log_likelihood < 0).all() and (kl >= 0).all()


@pytest.mark.parametrize("kl", ["analytic", "mc"])
def test_both_networks_get_gradients(vae, kl):
    vae.zero_grad()
    log_likelihood, divergence = elbo_terms(vae, (torch.rand(4, 1, 28, 28) < 0.2).float(), kl)
    (divergence - log_likelihood).mean().backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kl", ["analytic", "mc"])
def test_gradients_are_unbiased(kl):
    """Against the closed form of the bound, differentiated with respect to the encoder's and the decoder's slope."""
    model, x = LinearModel(), torch.tensor([[0.7]], dtype=torch.float64)
    draws = 200_000
    log_likelihood, divergence = elbo_terms(model, x.expand(draws, 1), kl)
    parameters = (model.gain, model.slope)
    estimated = torch.autograd.grad((log_likelihood - divergence).mean(), parameters)
    mu, logvar = model.encode(x)
    variance = torch.exp(logvar)
    expected = -((x - model.slope * mu) ** 2 + model.slope**2 * variance) / (2 * SIGMA**2)
    closed = (expected - 0.5 * (mu**2 + variance)).sum()
    torch.testing.assert_close(
        estimated, torch.autograd.grad(closed, parameters), rtol=0.0, atol=0.03
    )


def test_an_image_does_not_depend_on_its_batch(vae):
    images = (torch.rand(5, 1, 28, 28) < 0.2).float()
    torch.testing.assert_close(elbo_terms(vae, images)[1][2:3], elbo_terms(vae, images[2:3])[1])


# Importance weights


@pytest.mark.parametrize(
    "function", [log_importance_weights, iwae_bound, importance_log_likelihood]
)
@pytest.mark.parametrize("num_samples", [0, -3])
def test_fewer_than_one_sample_is_refused(function, num_samples, x):
    with pytest.raises(ValueError, match=f"num_samples must be at least 1, got {num_samples}"):
        function(LinearModel(), x, num_samples)


def test_weights_agree_with_densities(x):
    model = LinearModel()
    log_w = log_importance_weights(model, x, 11)
    assert log_w.shape == (6, 11)
    torch.testing.assert_close(log_w, model.asked[-1][1])


def test_exact_posterior_gives_equal_weights(x):
    model = LinearModel(shift=0.0, stretch=1.0)
    log_w = log_importance_weights(model, x, 9)
    torch.testing.assert_close(log_w, model.log_p_x(x)[:, None].expand(6, 9))
    torch.testing.assert_close(iwae_bound(model, x, 9), model.log_p_x(x))
    torch.testing.assert_close(
        effective_sample_size(log_w), torch.full((6,), 9.0, dtype=torch.float64)
    )


@pytest.mark.parametrize("chunk", [1, 7, 50, 64, 1000])
@pytest.mark.parametrize("batch_size", [1, 4, 100])
def test_chunks_add_up_to_the_whole(chunk, batch_size, x):
    """The weights that the chunks computed, put together and averaged at once, give the same estimates."""
    model = LinearModel()
    estimate = importance_log_likelihood(model, x, 64, batch_size=batch_size, chunk=chunk)
    log_w = [
        torch.cat([w[(asked == image).all(1)].flatten() for asked, w in model.asked]) for image in x
    ]
    assert all(len(w) == 64 for w in log_w)
    whole = log_mean_exp(torch.stack(log_w))
    torch.testing.assert_close(estimate.double(), whole, rtol=0.0, atol=1e-5)


def test_memory_is_bounded_by_batch_and_chunk(x):
    model = LinearModel()
    importance_log_likelihood(model, x, 1000, batch_size=2, chunk=30)
    assert model.most <= 2 * 30


def test_chunked_and_unchunked_agree_in_distribution():
    model, x = LinearModel(), torch.full((4000, 1), 0.7, dtype=torch.float64)
    torch.manual_seed(3)
    chunked = importance_log_likelihood(model, x, 16, batch_size=4000, chunk=5).double()
    whole = iwae_bound(model, x, 16).detach()
    error = ((chunked.var() + whole.var()) / 4000).sqrt()
    assert abs(chunked.mean() - whole.mean()) < 4 * error
    assert 0.85 < chunked.std() / whole.std() < 1.15


def test_estimates_approach_the_truth_from_below(x):
    model = LinearModel(shift=0.5, stretch=1.4)
    torch.manual_seed(0)
    many = x[:1].expand(2000, 3)
    exact = model.log_p_x(x[:1])
    gaps = [exact - iwae_bound(model, many, K).mean() for K in (1, 4, 16, 64)]
    assert all(a > b for a, b in zip(gaps, gaps[1:]))
    assert 0 < gaps[-1] < 0.1 < gaps[0]


def test_no_gradient_is_kept_while_evaluating(x):
    assert not importance_log_likelihood(LinearModel(), x, 3).requires_grad
    assert iwae_bound(LinearModel(), x, 3).requires_grad


def test_bound_of_one_draw_has_the_gradient_of_the_elbo(x):
    model = LinearModel()
    many = x[:1].expand(50_000, 3)
    parameters = (model.gain, model.slope)
    of_bound = torch.autograd.grad(iwae_bound(model, many, 1).mean(), parameters)
    log_likelihood, kl = elbo_terms(model, many)
    torch.testing.assert_close(
        of_bound, torch.autograd.grad((log_likelihood - kl).mean(), parameters), rtol=0, atol=0.2
    )


def test_improbable_images_stay_finite(vae):
    """Log-likelihoods of minus thousands of nats: their exponentials underflow in any precision."""
    noise = (torch.rand(3, 1, 28, 28) < 0.5).float()
    estimate = importance_log_likelihood(vae, noise, 20, chunk=6)
    assert estimate.isfinite().all() and (estimate < -1000).all()


def test_convolutional_networks_take_many_draws():
    model = RECIPES["iwae-bmnist"].model()
    images = (torch.rand(3, 1, 28, 28) < 0.2).to(torch.uint8)
    assert log_importance_weights(model, images, 4).shape == (3, 4)
    assert isinstance(model, BernoulliVAE)


# Effective sample size


def test_effective_sample_size_is_between_one_and_k():
    log_w = 10 * torch.randn(200, 8, dtype=torch.float64)
    ess = effective_sample_size(log_w)
    assert (ess >= 1 - 1e-9).all() and (ess <= 8 + 1e-9).all()


@pytest.mark.parametrize("shift", [-5000.0, 0.0, 5000.0])
def test_effective_sample_size_ignores_scale(shift):
    log_w = torch.randn(4, 8, dtype=torch.float64)
    torch.testing.assert_close(effective_sample_size(log_w + shift), effective_sample_size(log_w))


def test_weights_of_zero_do_not_count():
    log_w = torch.tensor([[0.0, 0.0, -torch.inf, -torch.inf]])
    torch.testing.assert_close(effective_sample_size(log_w), torch.tensor([2.0]))


def test_active_units_and_effective_samples_need_samples():
    for means in (torch.randn(1, 3), torch.randn(3)):
        with pytest.raises(ValueError, match="means must be"):
            active_units(means)
    for log_weights in (torch.zeros(2, 0), torch.zeros(3)):
        with pytest.raises(ValueError, match="log_weights must be"):
            effective_sample_size(log_weights)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        importance_log_likelihood(
            RECIPES["vae-mlp-z2"].smoke().model(), torch.zeros(2, 784), 5, batch_size=0
        )
