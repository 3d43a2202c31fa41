"""What the chapters on likelihoods and divergences leave out: extremes, half precision, bad input, autocast."""

import math

import pytest
import torch

from genbook.divergences import kl_gaussian_gaussian_analytic, kl_gaussian_gaussian_mc
from genbook.likelihoods import (
    log_likelihood_bernoulli,
    log_likelihood_bernoulli_logits,
    log_likelihood_normal,
    log_mean_exp,
)

KL = [kl_gaussian_gaussian_analytic, kl_gaussian_gaussian_mc]


@pytest.mark.parametrize("logit", [-1e4, -100.0, -30.0, 0.0, 30.0, 100.0, 1e4])
@pytest.mark.parametrize("pixel", [0.0, 1.0])
def test_bernoulli_logits_at_extremes(logit, pixel):
    logits = torch.full((1, 3), logit, requires_grad=True)
    value = log_likelihood_bernoulli_logits(logits, torch.full((1, 3), pixel))
    value.sum().backward()
    wide = torch.tensor(logit, dtype=torch.float64)
    expected = 3 * (pixel * wide - torch.logaddexp(wide, torch.zeros_like(wide)))
    torch.testing.assert_close(value.double(), expected[None], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        logits.grad, torch.full((1, 3), pixel) - torch.sigmoid(logits.detach())
    )


@pytest.mark.parametrize("mu", [0.0, 1e-45, 1e-10, 0.5, 1.0])
def test_bernoulli_gradient_is_never_nan_where_the_pixel_agrees(mu):
    mu = torch.tensor([[mu, 1 - mu]], requires_grad=True)
    value = log_likelihood_bernoulli(mu, mu.detach().round())
    value.sum().backward()
    assert value.isfinite().all() and mu.grad.isfinite().all()


def test_bernoulli_disagreeing_is_minus_infinity():
    mu = torch.tensor([[1.0, 0.5], [0.5, 0.5]], requires_grad=True)
    value = log_likelihood_bernoulli(mu, torch.tensor([[0, 1], [0, 1]]))
    assert value[0] == -math.inf
    value[1].backward()
    assert mu.grad[1].tolist() == [-2.0, 2.0]


@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.bool, torch.int64, torch.float32, torch.bfloat16]
)
def test_targets_of_any_type(dtype):
    logits = torch.randn(4, 1, 6, 6)
    target = torch.randint(0, 2, logits.shape)
    expected = log_likelihood_bernoulli_logits(logits, target.float())
    torch.testing.assert_close(log_likelihood_bernoulli_logits(logits, target.to(dtype)), expected)
    torch.testing.assert_close(
        log_likelihood_bernoulli(torch.sigmoid(logits), target.to(dtype)), expected
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_float32(dtype):
    parameters = [torch.randn(3, 784).to(dtype) for _ in range(4)]
    wide = [tensor.float() for tensor in parameters]
    pixels = torch.randint(0, 2, (3, 784))
    pairs = [
        (log_likelihood_bernoulli_logits, (parameters[0], pixels), (wide[0], pixels)),
        (
            log_likelihood_bernoulli,
            (parameters[0].abs().clamp(max=1), pixels),
            (wide[0].abs().clamp(max=1), pixels),
        ),
        (log_likelihood_normal, parameters[:3], wide[:3]),
        (kl_gaussian_gaussian_analytic, parameters, wide),
        (log_mean_exp, parameters[:1], wide[:1]),
    ]
    for function, half, full in pairs:
        value = function(*half)
        assert value.dtype == torch.float32, function.__name__
        torch.testing.assert_close(value, function(*full))


def test_float64_stays_float64_and_autocast_changes_nothing():
    logits, target = torch.randn(8, 784), torch.randint(0, 2, (8, 784))
    assert log_likelihood_bernoulli_logits(logits.double(), target).dtype == torch.float64
    outside = (
        log_likelihood_bernoulli_logits(logits, target),
        kl_gaussian_gaussian_analytic(*[logits] * 3, -logits),
    )
    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = (
            log_likelihood_bernoulli_logits(logits, target),
            kl_gaussian_gaussian_analytic(*[logits] * 3, -logits),
        )
    for a, b in zip(outside, inside):
        assert torch.equal(a, b)


def test_normal_and_kl_at_extreme_variances():
    zero = torch.zeros(1, 1)
    for logvar in (-170.0, -88.8, 88.0):
        value = torch.full((1, 1), logvar, requires_grad=True)
        density = log_likelihood_normal(zero, value, zero)
        density.sum().backward()
        torch.testing.assert_close(
            density.item(), -0.5 * (math.log(2 * math.pi) + logvar), rtol=1e-6, atol=1e-6
        )
        assert value.grad.item() == -0.5
    narrow = torch.full((1, 1), -60.0, requires_grad=True)
    kl = kl_gaussian_gaussian_analytic(zero, narrow, zero, zero)
    kl.sum().backward()
    torch.testing.assert_close(kl.item(), 29.5)
    torch.testing.assert_close(narrow.grad.item(), -0.5)


def test_log_mean_exp_extremes():
    y = torch.tensor(
        [[1000.0, 1000.0], [-1000.0, -1000.0], [-math.inf, 0.0], [-math.inf, -math.inf]]
    )
    expected = torch.tensor([1000.0, -1000.0, -math.log(2), -math.inf])
    torch.testing.assert_close(log_mean_exp(y), expected)
    one = torch.randn(5, 1)
    assert torch.equal(log_mean_exp(one), one[:, 0])


def test_an_empty_batch_and_a_batch_of_scalars():
    assert log_likelihood_bernoulli_logits(
        torch.zeros(0, 1, 28, 28), torch.zeros(0, 1, 28, 28)
    ).shape == (0,)
    assert kl_gaussian_gaussian_mc(*[torch.zeros(0, 3)] * 4, num_samples=2).shape == (0,)
    assert log_likelihood_normal(*[torch.zeros(7)] * 3).shape == (7,)


def test_monte_carlo_kl_follows_the_seed_and_the_number_of_samples():
    parameters = [torch.randn(2, 5) for _ in range(4)]
    torch.manual_seed(3)
    first = kl_gaussian_gaussian_mc(*parameters, num_samples=7)
    torch.manual_seed(3)
    assert torch.equal(first, kl_gaussian_gaussian_mc(*parameters, num_samples=7))
    assert first.shape == (2,)


@pytest.mark.parametrize(
    "function, arguments, message",
    [
        (
            log_likelihood_bernoulli,
            (torch.rand(2, 3), torch.zeros(2, 4)),
            r"mu \(2, 3\), target \(2, 4\)",
        ),
        (log_likelihood_bernoulli, (torch.rand(2, 1), torch.zeros(2)), "equal shapes"),
        (log_likelihood_bernoulli, (torch.tensor(0.5), torch.tensor(1.0)), "batch"),
        (
            log_likelihood_bernoulli,
            (torch.tensor([-3.0, 2.0]), torch.ones(2)),
            "mu must lie in .* from -3 to 2",
        ),
        (
            log_likelihood_bernoulli,
            (torch.rand(2), torch.tensor([0, 255])),
            "target must lie in .* from 0 to 255",
        ),
        (log_likelihood_bernoulli_logits, (torch.rand(3, 784), torch.rand(3, 1, 28, 28)), "logits"),
        (log_likelihood_normal, (torch.rand(2, 3), torch.rand(1, 3), torch.rand(2, 3)), "logvar"),
        (log_mean_exp, (torch.rand(3),), "batch, samples"),
        (log_mean_exp, (torch.rand(3, 2, 1),), "batch, samples"),
        (log_mean_exp, (torch.rand(3, 0),), "at least one sample"),
        *[(kl, (*[torch.rand(2, 3)] * 3, torch.rand(2, 1)), "logvar_p") for kl in KL],
        (
            kl_gaussian_gaussian_mc,
            (*[torch.rand(2, 3)] * 4, 0),
            "num_samples must be at least 1, got 0",
        ),
    ],
)
def test_bad_input_is_named(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)
