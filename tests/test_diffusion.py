"""The schedule and both chains beyond what the chapter shows: bad input, shapes, exact laws, precision, gradients."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Normal, kl_divergence

from genbook.diffusion.derivation import (
    Diffusion,
    cosine_betas,
    discretised_nll,
    extract,
    linear_betas,
    t_sample,
)
from genbook.diffusion.exact import GaussianMixtureNoise

T = 60
BUFFERS = (
    "betas",
    "alphas",
    "sqrt_recip_alphas",
    "alphas_cumprod",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "alphas_cumprod_prev",
    "posterior_variance",
)


def zero(x, t):
    return torch.zeros_like(x)


@pytest.fixture
def diffusion():
    torch.manual_seed(0)
    return Diffusion(linear_betas(T, 0.1 / T, 20 / T))


@pytest.fixture
def exact(diffusion):
    """The same schedule with float64 buffers."""
    return copy.deepcopy(diffusion).double()


# Schedules


def test_linear_schedule():
    betas = linear_betas()
    assert betas.dtype == torch.float64 and betas.shape == (1000,)
    assert betas[0] == 1e-4 and betas[-1] == 0.02
    torch.testing.assert_close(betas.diff(), torch.full((999,), 0.0199 / 999, dtype=torch.float64))
    assert (1 - betas).prod().item() == pytest.approx(4.036e-5, rel=1e-3)


@pytest.mark.parametrize("timesteps", [1, 2, 3, 10, 500, 1000, 1500, 4000])
def test_every_schedule_makes_a_diffusion(timesteps):
    for betas in (linear_betas(timesteps), cosine_betas(timesteps)):
        assert Diffusion(betas).timesteps == timesteps == len(betas)
        for name in BUFFERS:
            assert getattr(Diffusion(betas), name).isfinite().all(), name


def test_cosine_schedule_follows_the_cosine():
    betas = cosine_betas(300, s=0.01)
    t = torch.arange(301, dtype=torch.float64) / 300
    f = torch.cos((t + 0.01) / 1.01 * math.pi / 2) ** 2
    torch.testing.assert_close((1 - betas).cumprod(0)[:-1], (f / f[0])[1:-1])
    assert cosine_betas(300, largest=0.9)[-1] == 0.9 and cosine_betas(300)[-1] == 0.999


@pytest.mark.parametrize(
    "make",
    [
        lambda: linear_betas(0),
        lambda: linear_betas(-3),
        lambda: linear_betas(10, 0.02, 1e-4),
        lambda: linear_betas(10, 0.0, 0.1),
        lambda: linear_betas(10, 0.1, 1.0),
        lambda: linear_betas(10, math.nan, 0.1),
        lambda: cosine_betas(0),
        lambda: cosine_betas(10, s=-0.1),
        lambda: cosine_betas(10, largest=1.0),
        lambda: Diffusion(torch.tensor([])),
        lambda: Diffusion(torch.tensor(0.1)),
        lambda: Diffusion(torch.full((2, 2), 0.1)),
        lambda: Diffusion(torch.tensor([0.1, 0.1])),
        lambda: Diffusion(torch.tensor([0.2, 0.1])),
        lambda: Diffusion(torch.tensor([0.0, 0.1])),
        lambda: Diffusion(torch.tensor([0.1, 1.0])),
        lambda: Diffusion(torch.tensor([-0.1, 0.1])),
        lambda: Diffusion(torch.tensor([0.1, math.nan])),
    ],
)
def test_bad_schedules_are_refused(make):
    with pytest.raises(ValueError):
        make()


def test_buffers(diffusion):
    """Against products in plain Python; the buffers are no part of a checkpoint."""
    betas, bar = linear_betas(T, 0.1 / T, 20 / T).tolist(), 1.0
    for i, beta in enumerate(betas):
        prev, bar = bar, bar * (1 - beta)
        wanted = {
            "betas": beta,
            "alphas": 1 - beta,
            "sqrt_recip_alphas": (1 - beta) ** -0.5,
            "alphas_cumprod": bar,
            "sqrt_alphas_cumprod": bar**0.5,
            "sqrt_one_minus_alphas_cumprod": (1 - bar) ** 0.5,
            "alphas_cumprod_prev": prev,
            "posterior_variance": beta * (1 - prev) / (1 - bar),
        }
        for name, value in wanted.items():
            assert getattr(diffusion, name)[i].item() == pytest.approx(value, rel=1e-6), name
    for name in BUFFERS:
        assert getattr(diffusion, name).dtype == torch.float32
        assert getattr(diffusion, name).shape == (T,)
    assert not diffusion.state_dict() and not list(diffusion.parameters())


def test_small_numbers_keep_their_digits():
    """In float32 throughout, β̃ of the second step would be off by parts in ten thousand."""
    found = Diffusion(linear_betas()).posterior_variance[1].item()
    b1, b2 = linear_betas()[:2].tolist()
    assert found == pytest.approx(b2 * b1 / (b1 + b2 - b1 * b2), rel=1e-7)


# Look-up


def test_extract(diffusion):
    t = torch.tensor([0, T - 1, 7])
    for shape in ((3,), (3, 2), (3, 1, 4, 5)):
        found = extract(diffusion.betas, t, shape)
        assert found.shape == (3, *(1,) * (len(shape) - 1))
        assert torch.equal(found.flatten(), diffusion.betas[t])


@pytest.mark.parametrize("t", [[0, T], [-1, 0], [0], [0, 1, 2], [[0, 1]], [0.0, 1.0]])
def test_extract_refuses(diffusion, t):
    with pytest.raises(ValueError, match="t must"):
        extract(diffusion.betas, torch.tensor(t), (2, 3))
    with pytest.raises(ValueError, match="t must"):
        diffusion.q_sample(torch.zeros(2, 3), torch.tensor(t))
    with pytest.raises(ValueError, match="t must"):
        diffusion.p_losses(zero, torch.zeros(2, 3), torch.tensor(t))


def test_t_sample_is_uniform():
    torch.manual_seed(0)
    counts = t_sample(10, 100_000).bincount(minlength=10)
    assert len(counts) == 10 and (counts - 10_000).abs().max() < 5 * math.sqrt(9000)
    assert t_sample(1, 4).tolist() == [0] * 4 and t_sample(5, 3).dtype == torch.int64
    for bad in ((0, 3), (3, 0)):
        with pytest.raises(ValueError):
            t_sample(*bad)


# Forward


def test_q_sample_is_the_chain(exact):
    """The covariance of x_5 and x_20, which the closed form doesn't state, and both moments."""
    n = 100_000
    x, kept = torch.full((n, 1), 0.7, dtype=torch.float64), {}
    for i in range(20):
        x = (1 - exact.betas[i]).sqrt() * x + exact.betas[i].sqrt() * torch.randn_like(x)
        kept[i] = x
    drawn = exact.q_sample(torch.full((n, 1), 0.7).double(), torch.full((n,), 19))
    for values in (drawn, kept[19]):
        left = exact.alphas_cumprod[19]
        assert abs(values.mean() - 0.7 * left.sqrt()) < 4.5 * ((1 - left) / n).sqrt()
        assert abs(values.var() / (1 - left) - 1) < 4.5 * math.sqrt(2 / n)


def test_q_sample_inverts_and_is_linear(exact):
    x, noise = torch.randn(2, 6, 3, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 1, 10, 30, 58, 59])
    x_t = exact.q_sample(x, t, noise)
    torch.testing.assert_close(exact.predict_x_start(x_t, t, noise), x)
    torch.testing.assert_close(exact.q_sample(2 * x, t, 2 * noise), 2 * x_t)
    with pytest.raises(ValueError, match="noise"):
        exact.q_sample(x, t, noise[:, :1])


def test_posterior_is_bayes_rule(exact):
    grid = torch.linspace(-6, 6, 60_001, dtype=torch.float64)
    for i, start, x_t in ((1, 0.3, 0.5), (30, -1.0, 0.2), (59, 1.5, -2.0)):
        prev, beta = exact.alphas_cumprod_prev[i], exact.betas[i]
        observed = torch.tensor(x_t, dtype=torch.float64)
        likelihood = Normal((1 - beta).sqrt() * grid, beta.sqrt()).log_prob(observed)
        mass = (likelihood + Normal(prev.sqrt() * start, (1 - prev).sqrt()).log_prob(grid)).softmax(
            0
        )
        by_grid = (mass * grid).sum()
        mean, variance = exact.q_posterior(
            torch.tensor([start]).double(), observed[None], torch.tensor([i])
        )
        torch.testing.assert_close(mean[0], by_grid, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(
            variance[0], (mass * (grid - by_grid) ** 2).sum(), rtol=1e-5, atol=0.0
        )


def test_posterior_in_float32():
    diffusion = Diffusion(linear_betas())
    x, x_t, t = torch.randn(1000), torch.randn(1000), torch.arange(1000)
    betas = linear_betas()
    bar = (1 - betas).cumprod(0)
    prev = F.pad(bar[:-1], (1, 0), value=1.0)
    wanted = (prev.sqrt() * betas * x + (1 - betas).sqrt() * (1 - prev) * x_t) / (1 - bar)
    torch.testing.assert_close(
        diffusion.q_posterior(x, x_t, t)[0].double(), wanted, rtol=1e-5, atol=1e-5
    )


# Backward


def test_true_noise_gives_the_posterior_mean(exact):
    x, noise = torch.randn(2, T, 2, dtype=torch.float64)
    t = torch.arange(T)
    x_t = exact.q_sample(x, t, noise)
    found = exact.p_mean(lambda x, t: noise, x_t, t)
    torch.testing.assert_close(found, exact.q_posterior(x, x_t, t)[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found[0], x[0], rtol=1e-4, atol=1e-4)  # β̃ of the first step is 0


def test_p_sample_moments(diffusion):
    n = 100_000
    x, answer = torch.full((n, 1), 0.4), torch.full((n, 1), -0.8)
    for i in (1, 30, T - 1):
        drawn = diffusion.p_sample(lambda x, t: answer, x, torch.full((n,), i), i)
        mean = diffusion.p_mean(lambda x, t: answer, x, torch.full((n,), i))[0]
        variance = diffusion.posterior_variance[i]
        assert abs(drawn.mean() - mean) < 4.5 * (variance / n).sqrt() + 1e-6
        assert abs(drawn.var() / variance - 1) < 4.5 * math.sqrt(2 / n)
    first = torch.zeros(n).long()
    assert torch.equal(
        diffusion.p_sample(lambda x, t: answer, x, first, 0),
        diffusion.p_mean(lambda x, t: answer, x, first),
    )


def test_p_sample_refuses(diffusion):
    x = torch.zeros(2, 3)
    for t, index in (
        (torch.tensor([5, 5]), 4),
        (torch.tensor([5, 4]), 5),
        (torch.tensor([T, T]), T),
    ):
        with pytest.raises(ValueError, match="t must"):
            diffusion.p_sample(zero, x, t, index)
    with pytest.raises(ValueError, match="model must"):
        diffusion.p_sample(lambda x, t: x[:, :1], x, torch.tensor([5, 5]), 5)


def test_loop_follows_the_exact_variance(diffusion):
    """Gaussian data: a linear chain, followed by hand; every step is compared."""
    n, m, s = 10_000, -0.5, 0.4
    model = GaussianMixtureNoise(diffusion, torch.tensor([[m]]), torch.tensor([s]))
    path = diffusion.p_sample_loop(model, (n, 1))
    assert path.shape == (T, n, 1) and path.dtype == torch.float32
    betas = linear_betas(T, 0.1 / T, 20 / T).tolist()
    bars = [math.prod(1 - beta for beta in betas[: i + 1]) for i in range(T)]
    mean, variance = 0.0, 1.0
    for done, i in enumerate(reversed(range(T))):
        v = bars[i] * s**2 + 1 - bars[i]
        slope = (1 - betas[i] / v) / math.sqrt(1 - betas[i])
        tilde = betas[i] * (1 - bars[i - 1]) / (1 - bars[i]) if i else 0.0
        mean = slope * mean + betas[i] * math.sqrt(bars[i]) * m / (v * math.sqrt(1 - betas[i]))
        variance = slope**2 * variance + tilde
        assert abs(path[done].mean() - mean) < 4.5 * math.sqrt(variance / n)
        assert abs(path[done].var() / variance - 1) < 4.5 * math.sqrt(2 / n)
    assert 0.7 * s**2 < variance < s**2  # β̃ errs on this side


def test_loop_of_a_mixture_of_images(diffusion):
    """Two images, noised a little: both come out, as often as they should, and near them."""
    images = torch.stack([torch.full((3, 4, 4), -0.8), torch.full((3, 4, 4), 0.8)])
    model = GaussianMixtureNoise(diffusion, images, torch.full((2,), 0.1), torch.tensor([0.3, 0.7]))
    samples = diffusion.p_sample_loop(model, (1000, 3, 4, 4))[-1]
    second = samples.mean((1, 2, 3)) > 0
    assert abs(second.float().mean() - 0.7) < 4.5 * math.sqrt(0.21 / 1000)
    nearest = torch.where(second[:, None, None, None], images[1], images[0])
    assert (samples - nearest).abs().max() < 0.6
    assert 0.05 < (samples - nearest).std() < 0.11


def test_loop_is_reproducible_and_calls_back(diffusion):
    model = GaussianMixtureNoise(diffusion, torch.zeros(1, 2), torch.ones(1))
    seen, paths = [], []
    for _ in range(2):
        torch.manual_seed(1)
        paths.append(
            diffusion.p_sample_loop(
                model, (3, 2), callback=lambda i, x: seen.append((i, x.clone()))
            )
        )
    assert torch.equal(*paths)
    assert [i for i, _ in seen[:T]] == list(reversed(range(T)))
    assert torch.equal(torch.stack([x for _, x in seen[:T]]), paths[0])
    assert diffusion.p_sample_loop(model, (3, 2), timesteps=7).shape == (7, 3, 2)


def test_loop_switches_gradients_off_and_back_on(diffusion):
    weight = torch.ones((), requires_grad=True)
    assert not diffusion.p_sample_loop(lambda x, t: weight * x, (2, 1)).requires_grad
    assert torch.is_grad_enabled()


def test_loop_refuses(diffusion):
    for steps in (0, -1, T + 1):
        with pytest.raises(ValueError, match="timesteps"):
            diffusion.p_sample_loop(zero, (2, 1), timesteps=steps)
    for shape in ((), (0, 3), (2, 0)):
        with pytest.raises(ValueError, match="shape"):
            diffusion.p_sample_loop(zero, shape)

    def fails(index, x):
        if index == T - 3:
            raise KeyError("gone")

    with pytest.raises(RuntimeError, match=f"t_index {T - 3}.*gone") as caught:
        diffusion.p_sample_loop(zero, (2, 1), callback=fails)
    assert isinstance(caught.value.__cause__, KeyError)


# Losses


def test_p_losses(diffusion):
    x, noise = torch.randn(2, 5, 3, 4, 4)
    t = torch.tensor([0, 3, 20, 40, T - 1])
    found = diffusion.p_losses(lambda x, t: 0.3 * x, x, t, noise)
    e = noise - 0.3 * diffusion.q_sample(x, t, noise)
    assert found.shape == ()
    torch.testing.assert_close(found, torch.where(e.abs() < 1, e**2 / 2, e.abs() - 0.5).mean())
    assert diffusion.p_losses(lambda x, t: noise, x, t, noise) == 0
    half = diffusion.p_losses(lambda x, t: (0.3 * x).bfloat16(), x, t, noise)  # as under autocast
    assert half.dtype == torch.float32 and abs(half - found) < 0.01
    with pytest.raises(ValueError, match="model must"):
        diffusion.p_losses(lambda x, t: x[:, :1], x, t)
    with pytest.raises(ValueError, match="noise must"):
        diffusion.p_losses(zero, x, t, noise[:2])


def test_loss_reaches_the_weights(diffusion):
    weight = torch.zeros((), requires_grad=True)
    x, t = torch.zeros(2000, 1), torch.full((2000,), T - 1)
    (slope,) = torch.autograd.grad(diffusion.p_losses(lambda x, t: weight * x, x, t), weight)
    assert slope < -0.3  # x_t is nearly the noise: the weight should rise


def test_bound_terms_are_divergences(exact):
    x = (torch.randint(0, 256, (T, 2, 3, 3)) / 127.5 - 1).double()
    noise, t = torch.randn_like(x), torch.arange(T)
    x_t = exact.q_sample(x, t, noise)

    def model(x, t):
        return 0.5 * x

    found = exact.bound_term(model, x, t, noise)
    assert found.shape == (T,)
    mean, variance = exact.q_posterior(x, x_t, t)
    std = variance.clamp(min=1e-12).sqrt().expand_as(x)
    each = kl_divergence(Normal(mean, std), Normal(exact.p_mean(model, x_t, t), std))
    torch.testing.assert_close(found[1:], each.flatten(1).sum(1)[1:], rtol=1e-4, atol=1e-6)
    decoder = exact.posterior_variance[1].sqrt()
    mean = exact.p_mean(model, x_t[:1], t[:1])
    torch.testing.assert_close(found[:1], discretised_nll(x[:1], mean, decoder))
    with pytest.raises(ValueError, match="x must"):
        exact.bound_term(model, x + 1, t)


def test_prior_kl(exact):
    x = torch.rand(4, 3, 5, 5, dtype=torch.float64) * 2 - 1
    end = Normal(exact.alphas_cumprod[-1].sqrt() * x, (1 - exact.alphas_cumprod[-1]).sqrt())
    wanted = kl_divergence(end, Normal(torch.zeros_like(x), 1.0)).flatten(1).sum(1)
    torch.testing.assert_close(exact.prior_kl(x), wanted, rtol=1e-6, atol=1e-10)


def test_bound_is_above_the_entropy():
    """Eight levels of equal probability can't cost less than log 8 nats, whatever the model."""
    torch.manual_seed(0)
    diffusion = Diffusion(linear_betas(200, 5e-4, 0.1))
    levels = (torch.arange(60.0, 68) / 127.5 - 1)[:, None]
    x = levels.repeat(100, 1)
    best = diffusion.bound(GaussianMixtureNoise(diffusion, levels, torch.full((8,), 1e-4)), x)
    blind = diffusion.bound(zero, x)
    error = best.std() / math.sqrt(len(best))
    assert best.shape == (800,)
    assert math.log(8) - 4 * error < best.mean() < math.log(8) + 0.7
    assert blind.mean() > best.mean() + 1


def test_a_single_step():
    """T = 1: one term, and a decoder of variance β."""
    diffusion = Diffusion(torch.tensor([0.3]))
    x, noise = torch.zeros(2, 1) + 1 / 127.5 / 2, torch.randn(2, 1)
    found = diffusion.bound_term(lambda x, t: noise, x, torch.zeros(2).long(), noise)
    torch.testing.assert_close(found, discretised_nll(x, x, math.sqrt(0.3)))
    assert diffusion.p_sample_loop(zero, (2, 1)).shape == (1, 2, 1)


# The decoder


@pytest.mark.parametrize("mean, std", [(0.3, 0.007), (1.5, 0.05), (-3.0, 0.5), (0.0, 10.0)])
def test_levels_have_a_total_mass_of_one(mean, std):
    levels = (torch.arange(256, dtype=torch.float64) / 127.5 - 1)[:, None]
    nll = discretised_nll(levels, torch.full_like(levels, mean), std)
    assert nll.neg().exp().sum().item() == pytest.approx(1.0, abs=1e-9)
    in_float32 = discretised_nll(levels.float(), torch.full((256, 1), mean), std)
    torch.testing.assert_close(in_float32.double(), nll, rtol=1e-3, atol=1e-3)


def test_decoder_far_away_is_finite_and_differentiable():
    levels = torch.arange(256.0)[:, None] / 127.5 - 1
    for value in (-50.0, -1.0, 0.2, 1.0, 50.0):
        mean = torch.full((256, 1), value, requires_grad=True)
        nll = discretised_nll(levels, mean, 0.007)
        (slope,) = torch.autograd.grad(nll.sum(), mean)
        assert nll.isfinite().all() and slope.isfinite().all()
    with pytest.raises(ValueError, match="mean"):
        discretised_nll(levels, levels[:3], 0.1)


def test_decoder_gradient_is_that_of_the_difference():
    x = torch.tensor([[-1.0], [-0.5 + 1 / 255], [1.0]], dtype=torch.float64)
    mean = torch.tensor([[-0.97], [-0.5], [0.99]], dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(discretised_nll(x, mean, 0.02).sum(), mean)
    cdf = Normal(mean, torch.tensor(0.02, dtype=torch.float64)).cdf
    upper = torch.where(x > 0.999, 1.0, cdf(x + 1 / 255))
    lower = torch.where(x < -0.999, 0.0, cdf(x - 1 / 255))
    (wanted,) = torch.autograd.grad(-(upper - lower).log().sum(), mean)
    torch.testing.assert_close(found, wanted)


# The noise model in closed form


def test_mixture_noise_is_the_score(exact):
    means = torch.randn(3, 2, 4, 4, dtype=torch.float64)
    model = GaussianMixtureNoise(
        exact, means, torch.tensor([0.3, 0.5, 0.8]).double(), torch.tensor([1.0, 2, 3]).double()
    )
    x = torch.randn(6, 2, 4, 4, dtype=torch.float64, requires_grad=True)
    t = torch.tensor([0, 1, 5, 20, 40, T - 1])
    (score,) = torch.autograd.grad(model.log_density(x, t).sum(), x)
    scale = extract(exact.sqrt_one_minus_alphas_cumprod, t, x.shape)
    torch.testing.assert_close(model(x, t), -scale * score)


def test_mixture_noise_by_regression(diffusion):
    """Residuals of the best prediction are uncorrelated with any function of x_t."""
    model = GaussianMixtureNoise(diffusion, torch.tensor([[-1.0], [1.2]]), torch.tensor([0.3, 0.2]))
    n = 100_000
    for i in (3, 20, 45):
        noise, t = torch.randn(n, 1), torch.full((n,), i)
        x = diffusion.q_sample(model.sample(n), t, noise)
        residual = noise - model(x, t)
        for f in (torch.ones_like, lambda x: x, torch.sin, torch.square):
            product = residual * f(x)
            assert abs(product.mean()) < 4.5 * product.std() / math.sqrt(n)


def test_mixture_samples(diffusion):
    torch.manual_seed(0)
    means, stds = torch.tensor([[0.0, 1.0], [3.0, -1.0]]), torch.tensor([[0.5, 1.0], [2.0, 0.1]])
    model = GaussianMixtureNoise(diffusion, means, stds, torch.tensor([1.0, 3.0]))
    drawn = model.sample(200_000)
    weights = torch.tensor([[0.25], [0.75]])
    mean = (weights * means).sum(0)
    variance = (weights * (stds**2 + means**2)).sum(0) - mean**2
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0.0, atol=0.03)
    torch.testing.assert_close(drawn.var(0), variance, rtol=0.02, atol=0.0)


@pytest.mark.parametrize(
    "means, stds, weights",
    [
        (torch.zeros(0, 2), torch.ones(0), None),
        (torch.zeros(2, 2), torch.ones(3), None),
        (torch.zeros(2, 2), torch.ones(2, 1), None),
        (torch.zeros(2, 2), torch.ones(2), torch.ones(3)),
        (torch.zeros(2, 2), torch.tensor([1.0, 0.0]), None),
        (torch.zeros(2, 2), torch.ones(2), torch.tensor([1.0, -1.0])),
    ],
)
def test_bad_mixtures_are_refused(diffusion, means, stds, weights):
    with pytest.raises(ValueError):
        GaussianMixtureNoise(diffusion, means, stds, weights)


# The course's names


def test_the_course_s_names_are_those_of_its_schedule():
    """Importable from the part: arrays of 1,000 linear steps, and functions of this schedule."""
    from genbook import diffusion as part

    course = Diffusion(linear_betas(1000))
    for name in BUFFERS:
        assert torch.equal(getattr(part, name), getattr(course, name)), name
    assert part.alphas_cumprod[-1].item() == pytest.approx(4.036e-5, rel=1e-3)
    from genbook.diffusion import extract, p_losses, p_sample, p_sample_loop, q_sample, t_sample

    x, noise, t = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8), t_sample(1000, 4)
    by_hand = (
        extract(part.sqrt_alphas_cumprod, t, x.shape) * x
        + extract(part.sqrt_one_minus_alphas_cumprod, t, x.shape) * noise
    )
    torch.testing.assert_close(q_sample(x, t, noise), by_hand)
    assert q_sample(x_start=x, t=t).shape == x.shape
    assert p_losses(denoise_model=zero, x_start=x, t=t) == pytest.approx(0.425, abs=0.1)
    assert p_sample(zero, x, torch.full((4,), 9), 9).shape == x.shape
    assert p_sample_loop(zero, shape=(2, 3, 4, 4), timesteps=5).shape == (5, 2, 3, 4, 4)
    with pytest.raises(AttributeError, match="no attribute 'gammas'"):
        part.gammas  # noqa: B018
    assert set(part.__all__) <= set(dir(part)) | set(part._OF_THE_COURSE)
