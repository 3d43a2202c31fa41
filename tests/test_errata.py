"""Each erratum of the book, held against the records and the package's functions; nothing is trained here."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import binary_cross_entropy, logsigmoid, smooth_l1_loss

from genbook.diffusion.derivation import Diffusion, linear_betas
from genbook.divergences import kl_gaussian_gaussian_analytic, kl_gaussian_gaussian_mc
from genbook.gan.critics import distribution1, lp_reg, vf_squared_hellinger, vf_wasserstein_distance
from genbook.gan.minimax import GAN
from genbook.likelihoods import log_likelihood_normal
from genbook.runs import Run
from genbook.vae.binarised_mnist import (
    RECIPES,
    build,
    elbo_terms_of_images,
    unscaled_noise_objective,
)
from genbook.vae.elbo import reparameterise
from genbook.vae.importance import importance_log_likelihood


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def open_run(root):
    """Opens a record of the checkout by name."""
    return lambda name: Run(root / "runs" / name)


def reported_by_weighted(run):
    """What the loss with the weighted KL makes of the validation images, from the record's figures."""
    return run.figure("valid_elbo") + (1 - run.recipe["beta"]) * run.figure("valid_kl")


# Report 000: the Monte-Carlo KL summed over the batch and averaged over the latents


@pytest.mark.parametrize("batch, latents", [(64, 100), (16, 100), (100, 100), (128, 20)])
def test_wrong_axis_is_a_weight(batch, latents):
    k = torch.randn(batch, latents, dtype=torch.float64)
    torch.testing.assert_close(k.sum(0).mean(), batch / latents * k.sum(1).mean())


def test_package_sums_over_latents():
    """The package's KL of an image doesn't depend on the batch that the image is in."""
    mu, logvar = torch.randn(2, 64, 100)
    zero = torch.zeros_like(mu)
    both = kl_gaussian_gaussian_analytic(mu, logvar, zero, zero)
    alone = torch.cat(
        [
            kl_gaussian_gaussian_analytic(*(t[i : i + 1] for t in (mu, logvar, zero, zero)))
            for i in range(64)
        ]
    )
    torch.testing.assert_close(both, alone)
    estimate = kl_gaussian_gaussian_mc(mu, logvar, zero, zero, num_samples=2000)
    assert (estimate.mean() / both.mean() - 1).abs() < 0.01


def test_weighted_recipe_is_the_mistake():
    recipe = RECIPES["vae-bmnist-weighted-kl"]
    assert recipe.beta == recipe.batch_size / recipe.latent == 0.64
    assert recipe.kl == "mc"


def test_weighted_run_reports_what_the_report_does(open_run):
    run, honest = open_run("vae-bmnist-weighted-kl"), open_run("vae-bmnist")
    reported, bound = reported_by_weighted(run), run.figure("valid_elbo")
    assert abs(reported - -90.52) < 1
    assert abs(bound - honest.figure("valid_elbo")) < 1  # what is true has hardly changed
    assert reported - bound > 9
    assert reported > run.figure("test_log_px") + 3  # a lower bound can't be above
    assert run.figure("test_elbo") < run.figure("test_log_px")


def test_weighted_loss_agrees_with_the_derivation(open_run):
    """The training log holds the loss and the true bound of the same batches: they differ by (1 - β) KL."""
    run = open_run("vae-bmnist-weighted-kl")
    last = {name: values[-1] for name, values in run.metrics.items()}
    assert -last["train_loss"] - last["train_elbo"] == pytest.approx(
        (1 - 0.64) * last["train_kl"], abs=0.01
    )


# Report 003: noise scaled by the variance or by its logarithm


def test_package_scales_noise_by_the_deviation():
    logvar = torch.tensor([-6.0, -1.0, 0.0, 1.0], dtype=torch.float64).expand(200_000, 4)
    z = reparameterise(torch.zeros_like(logvar), logvar)
    torch.testing.assert_close(z.var(0), logvar[0].exp(), rtol=0.03, atol=0.0)


def test_unscaled_noise_is_none_at_zero():
    class Said(torch.nn.Module):
        """An encoder that says log-variance 0, and a decoder whose log-likelihood is the square of z."""

        def encode(self, x):
            return x, torch.zeros_like(x)

        def log_p_x_given_z(self, x, z):
            return -(z - x).square().sum(1)

    x = torch.randn(50, 3)
    loss, _ = unscaled_noise_objective(Said(), x)
    torch.testing.assert_close(
        loss, 0.5 * x.square().sum(1).mean()
    )  # no noise, and the KL of μ alone


def test_wrong_noise_overstates():
    v = torch.linspace(-6, 1.5, 50, dtype=torch.float64)
    zero = torch.zeros_like(v)
    said = kl_divergence(Normal(zero, torch.exp(0.5 * v)), Normal(zero, zero + 1))
    for w in (torch.exp(v), v.abs()):
        drawn = kl_divergence(Normal(zero, w), Normal(zero, zero + 1))
        expected = 0.5 * ((w**2 - torch.log(w**2)) - (torch.exp(v) - v))
        torch.testing.assert_close(drawn - said, expected)
    w = torch.exp(v)
    assert (w**2 - w - torch.log(w) >= 0).all()


@pytest.mark.parametrize("latents, in_report, honest", [(2, -140.0, -154.5), (20, -59.5, -101.0)])
def test_unscaled_run_reports_what_the_report_does(open_run, latents, in_report, honest):
    run, right = open_run(f"vae-mlp-z{latents}-unscaled-noise"), open_run(f"vae-mlp-z{latents}")
    reported = run.metrics["train_reported"][-1]
    assert abs(reported - in_report) < 4
    assert abs(right.figure("valid_elbo") - honest) < 2
    assert reported > right.figure("valid_elbo") + 10  # the seeming progress
    assert run.figure("valid_elbo") < right.figure("valid_elbo") - 10  # and what it did
    same = (
        "data",
        "network",
        "hidden",
        "activation",
        "latent",
        "epochs",
        "batch_size",
        "optimizer",
        "lr",
        "seed",
    )
    assert all(run.recipe[field] == right.recipe[field] for field in same)


@pytest.mark.parametrize("latents", [2, 20])
@torch.no_grad()
def test_unscaled_weights_claim_noise_that_they_do_not_draw(open_run, latents):
    _, bad = build(open_run(f"vae-mlp-z{latents}-unscaled-noise"))
    _, good = build(open_run(f"vae-mlp-z{latents}"))
    images = good.sample(300, draw=True)
    _, logvar = bad.encode(images)
    claimed, drawn = torch.exp(0.5 * logvar), logvar.abs()
    assert (claimed.median() - 1).abs() < 0.1 and drawn.median() < 0.1
    log_likelihood, divergence = elbo_terms_of_images(bad, images)
    loss, _ = unscaled_noise_objective(bad, images)
    assert -loss > (log_likelihood - divergence).mean() + 10


# Report 003, the answers


def test_squared_covariance_costs_twice_the_logarithm():
    variance = torch.tensor([0.01], dtype=torch.float64)
    zero = torch.zeros(1, 1, dtype=torch.float64)
    one = kl_gaussian_gaussian_analytic(zero, variance.log()[None], zero, zero).item()
    printed = 0.5 * (variance**2 - torch.log(variance**2) - 1).item()
    assert printed - one == pytest.approx(2.30, abs=0.01)


def test_bound_may_rise_while_the_evidence_falls():
    x, noise, mean, deviation = 2.0, 0.5, 0.5, 0.1

    def bound(w):
        kl = 0.5 * (deviation**2 + mean**2 - 1 - math.log(deviation**2))
        error = (x - w * mean) ** 2 + (w * deviation) ** 2
        return -error / (2 * noise**2) - math.log(noise * math.sqrt(2 * math.pi)) - kl

    def evidence(w):
        return Normal(0.0, math.sqrt(w**2 + noise**2)).log_prob(torch.tensor(x)).item()

    assert bound(3.5) > bound(2.0) and evidence(3.5) < evidence(2.0)
    assert bound(2.0) < evidence(2.0) and bound(3.5) < evidence(3.5)


def test_posterior_is_not_the_prior(open_run):
    assert open_run("vae-mlp-z20").figure("valid_kl") > 20
    assert open_run("vae-mlp-z2").figure("valid_kl") > 4


def test_gradient_from_the_density_is_unbiased_and_noisier():
    noise = torch.randn(200_000, dtype=torch.float64)
    z = 0.7 + noise
    score, through = z**2 * noise, 2 * z
    for values in (score, through):
        assert abs(values.mean() - 1.4) < 4 * values.std() / math.sqrt(len(values))
    assert score.var() > 2 * through.var()


def test_share_of_the_square():
    one = math.erf(2 / math.sqrt(2))
    assert round(one, 3) == 0.954 and round(one**2, 3) == 0.911


def test_answer_1_12_is_minus_the_bound(open_run):
    """Binary cross-entropy plus KL, by PyTorch, is the negative of the package's bound."""
    _, model = build(open_run("vae-mlp-z20"))
    with torch.no_grad():
        x = model.sample(50, draw=True)
        mu, logvar = model.encode(x)
        means = model.decode(mu).sigmoid().view(x.shape)
        log_likelihood = model.log_p_x_given_z(x, mu)
        _, divergence = elbo_terms_of_images(model, x)
    error = binary_cross_entropy(means, x, reduction="none").flatten(1).sum(1)
    kl = kl_divergence(Normal(mu, torch.exp(0.5 * logvar)), Normal(0.0, 1.0)).sum(1)
    torch.testing.assert_close(error + kl, divergence - log_likelihood, rtol=1e-4, atol=1e-2)


def test_improbable_coordinates_become_the_rule():
    a = 1 - math.erf(2 / math.sqrt(2))
    shares = []
    for latents in (1, 20, 100):
        counted = (torch.randn(20_000, latents).abs() > 2).any(1).double().mean().item()
        assert counted == pytest.approx(1 - (1 - a) ** latents, abs=0.015)
        shares.append(counted)
    assert shares[0] < 0.06 and shares[1] > 0.55 and shares[2] > 0.98


def test_factor_analysis_does_not_look_for_variance():
    w, psi = torch.tensor([[1.0], [1.0], [0.0]]), torch.tensor([0.1, 0.1, 5.0])
    axis = torch.linalg.eigh(w @ w.T + torch.diag(psi)).eigenvectors[:, -1]
    assert axis[2].abs() > 0.99 and w[2] == 0


def test_game_of_probabilities_has_another_optimum():
    p, q = torch.randn(2, 6, dtype=torch.float64).softmax(1)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 6)
    values = corners @ p + (1 - corners) @ q
    assert values.max().item() == pytest.approx(1 + 0.5 * (p - q).abs().sum().item())
    assert torch.equal(corners[values.argmax()], (p > q).double())
    torch.testing.assert_close(corners @ p + (1 - corners) @ p, torch.ones(64, dtype=torch.float64))


@pytest.mark.parametrize("centre, apart", [(0.0, 1.0), (1.8, 2.3), (-3.0, 0.5), (5.0, 0.1)])
def test_best_scores_add_up_to_one(centre, apart):
    on_real, on_fake = torch.randn(2, 2000, dtype=torch.float64) + torch.tensor(
        [[centre + apart], [centre - apart]]
    )
    slides = torch.linspace(-20, 20, 4001, dtype=torch.float64)[:, None]
    value = (logsigmoid(on_real + slides) + logsigmoid(-on_fake - slides)).mean(1)
    added = (on_real.sigmoid() + on_fake.sigmoid()).mean().item()
    best = slides[value.argmax()]
    assert ((on_real + best).sigmoid() + (on_fake + best).sigmoid()).mean().item() == pytest.approx(
        1, abs=0.005
    )
    assert (value.max() - value[2000]).item() >= (1 - added) ** 2 - 1e-9


def test_recorded_scores_add_up_to_one(open_run):
    found = open_run("gan-mnist").metrics
    assert found["train_d_real"][-1] + found["train_d_fake"][-1] == pytest.approx(1, abs=0.05)


def test_saturating_gradient_has_the_sign_of_the_other():
    """A fake that is told apart for sure: the derivatives by its logit differ in length, not in sign."""
    logit = torch.tensor([-8.0, -4.0, 0.0, 4.0], dtype=torch.float64, requires_grad=True)
    saturating, other = (
        torch.autograd.grad(loss.sum(), logit)[0]
        for loss in (logsigmoid(-logit), -logsigmoid(logit))
    )
    assert (saturating < 0).all() and (other < 0).all()
    torch.testing.assert_close(saturating / other, torch.exp(logit.detach()))  # D / (1 − D)


# Report 002


def test_diagonal_is_not_isotropic():
    point, turned, zero = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)
    for logvar, same in (((-1.0, -1.0), True), ((-1.0, 1.0), False)):
        densities = [
            log_likelihood_normal(zero, torch.tensor([logvar]), z) for z in (point, turned)
        ]
        assert torch.allclose(*densities) == same


@torch.no_grad()
def test_estimate_of_the_likelihood_rises_with_the_draws(open_run):
    _, model = build(open_run("vae-bmnist"))
    images = model.sample(20, draw=True)
    few, more = (importance_log_likelihood(model, images, K).mean() for K in (10, 1000))
    again = importance_log_likelihood(model, images, 10).mean()
    assert more > few + 0.5 and few != again


def test_printed_hellinger_objective_has_no_maximum():
    c = torch.tensor([1.0, 10.0, 50.0], dtype=torch.float64)
    printed = 1 - torch.exp(-c) + torch.exp(c) - torch.exp(-c)  # f = −c everywhere, P = Q
    assert (printed > 0).all() and printed[-1] > 1e20
    points = torch.zeros(3, 2)
    for value in c[:2]:
        found = vf_squared_hellinger(points, points, lambda x, value=value: value.expand(len(x), 1))
        assert (
            found.item() == pytest.approx((2 - math.exp(-value) - math.exp(value)), rel=1e-6)
            and found < 0
        )


def test_printed_wasserstein_objective_has_no_minimum():
    x, y = (next(distribution1(theta, 500)) for theta in (0.0, 1.5))
    for slope in (1.0, 1000.0):
        value = vf_wasserstein_distance(x, y, lambda points, slope=slope: -slope * points[:, :1])
        assert value.item() == pytest.approx(1.5 * slope, rel=1e-5)


@pytest.mark.parametrize("theta", [0.001, 0.1, 2.0])
def test_near_lines_are_as_different_as_far_ones(theta):
    """The squared Hellinger distance of two lines is 2: no box half as wide as θ has points of both."""
    x, y = (next(distribution1(value, 500)) for value in (0.0, theta))
    boxes = [set((points[:, 0] / (theta / 2)).round().int().tolist()) for points in (x, y)]
    assert not boxes[0] & boxes[1]
    value = vf_squared_hellinger(x, y, lambda points: 10 * torch.sign(theta / 2 - points[:, :1]))
    assert value.item() == pytest.approx(2, abs=2e-4)


def test_lines_of_the_record_approach_two(open_run):
    found = open_run("critics-lines-sgd").metrics
    assert found["hellinger_0.1"][-1] > 1.9 and 1.95 < found["hellinger_1"][-1] <= 2


def test_smaller_batches_are_noisier():
    means = [torch.randn(2000, size).mean(1).std().item() for size in (64, 512)]
    assert means[0] / means[1] == pytest.approx(math.sqrt(8), rel=0.1)


@pytest.mark.parametrize("centre", [0.0, 3.0])
def test_interpolation_keeps_the_mean(centre):
    z_0, z_1 = centre + torch.randn(2, 200_000, dtype=torch.float64)
    z = 0.5 * z_0 + 0.5 * z_1
    assert z.mean().item() == pytest.approx(centre, abs=0.01) and z.var().item() == pytest.approx(
        0.5, rel=0.02
    )


# The reports' traversals


@torch.no_grad()
def test_step_of_fifty_makes_all_latents_one():
    z, step = torch.randn(2000, 100), torch.eye(100)[6]
    cosine = torch.cosine_similarity(z[:1000] + 50 * step, z[1000:] + 50 * step)
    assert cosine.mean().item() == pytest.approx(2500 / 2600, abs=0.01)


@torch.no_grad()
def test_untrained_generator_changes_along_any_latent():
    generator = GAN().generator.eval()
    z = torch.randn(200, 100)
    images = generator(z)
    apart = (images[1:] - images[:-1]).square().mean().sqrt()
    for way in (torch.eye(100)[0], torch.eye(100)[50], torch.full((100,), 0.1)):
        assert (generator(z + 5 * way) - images).square().mean().sqrt() > 0.2 * apart


# Report 001: the penalty


def test_norm_by_rows_lets_slopes_pass():
    for slope, fined in ((9.0, False), (12.0, True)):
        even = torch.full((3, 32, 32), slope / 3072**0.5)
        due = lp_reg(
            torch.zeros(2, 3, 32, 32),
            torch.ones(2, 3, 32, 32),
            lambda z, even=even: (z * even).sum((1, 2, 3)),
        )
        assert due.item() == pytest.approx((slope - 1) ** 2, rel=1e-4)
        assert (even.norm(dim=-1) > 1).any() == fined


def test_t_by_pixel_stays_in_the_middle():
    d, t = torch.randn(3072), torch.rand(1000, 3072)
    foot = t @ d.square() / d.square().sum()
    assert foot.min() > 0.45 and foot.max() < 0.55
    off = ((t - foot[:, None]) * d).norm(dim=1) / d.norm()
    assert off.mean().item() == pytest.approx(math.sqrt(1 / 12), rel=0.02)


# Assignment 004


def test_plus_before_the_divergence_has_no_optimum():
    """x = z + noise, q a Gaussian: a narrow q gains without end, a far one loses without end."""
    x, prior, evidence = (
        1.5,
        Normal(0.0, 1.0),
        Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(1.5)).item(),
    )

    def printed(mean, deviation, sign=1):
        fit = -0.5 * ((x - mean) ** 2 + deviation**2) - 0.5 * math.log(2 * math.pi)
        return fit + sign * kl_divergence(Normal(mean, deviation), prior).item()

    assert printed(0.75, math.sqrt(0.5), sign=-1) == pytest.approx(evidence, abs=1e-5)
    assert printed(0.75, 1e-30) > evidence + 50
    assert printed(-1000.0, 1.0) < -1000 and printed(-1000.0, 1.0, sign=-1) < -1000


def test_sum_over_images_is_one_number():
    """Read literally, with a draw for each image, the estimate is of the mean of p(x) over images."""
    images = math.sqrt(2.0) * torch.randn(200_000, dtype=torch.float64)
    q = Normal(images / 2, 0.8)
    z = q.sample()
    weights = Normal(0.0, 1.0).log_prob(z) + Normal(z, 1.0).log_prob(images) - q.log_prob(z)
    found = weights.exp().mean().log().item()
    assert found == pytest.approx(-0.5 * math.log(8 * math.pi), abs=0.01)
    for x in (0.0, -3.0):
        assert abs(Normal(0.0, math.sqrt(2.0)).log_prob(torch.tensor(x)).item() - found) > 0.3


def test_bound_weighs_the_errors_of_the_noise():
    schedule = Diffusion(linear_betas(1000))
    weights = []
    for t in (2, 1000):
        a, rest = schedule.alphas[t - 1].double(), 1 - schedule.alphas_cumprod[t - 1].double()
        deviation = schedule.posterior_variance[t - 1].double().sqrt()
        means = [(1 - (1 - a) / rest.sqrt() * noise) / a.sqrt() for noise in (0.0, 1.0)]
        weights.append(kl_divergence(*(Normal(mean, deviation) for mean in means)).item())
    assert weights[0] == pytest.approx(0.60, abs=0.01) and weights[1] == pytest.approx(
        0.0102, abs=1e-4
    )


def test_smooth_loss_is_not_least_at_the_mean():
    noise, share = torch.tensor([-0.5, 3.0]), torch.tensor([0.75, 0.25])
    guess = torch.linspace(-1, 3, 4001)
    off = noise - guess[:, None]
    least = guess[(smooth_l1_loss(off, 0 * off, reduction="none") * share).sum(1).argmin()].item()
    assert least == pytest.approx(-0.5 + 1 / 3, abs=2e-3) and (
        noise * share
    ).sum().item() == pytest.approx(0.375)


@torch.no_grad()
def test_step_draws_the_earlier_image():
    """Data N(0, 4) and the best noise model: a step from x_t has the variance of x_{t-1}."""
    schedule = Diffusion(linear_betas(10, 0.05, 0.3))
    left, t = schedule.alphas_cumprod.double(), 6  # mathematical t, index t − 1
    variance = 4 * left + 1 - left
    x_t = variance[t - 1].sqrt() * torch.randn(400_000, dtype=torch.float64)
    guess = (1 - left[t - 1]).sqrt() * x_t / variance[t - 1]  # E[ε | x_t]
    alpha = schedule.alphas[t - 1].double()
    mean = (x_t - (1 - alpha) / (1 - left[t - 1]).sqrt() * guess) / alpha.sqrt()
    exact = (
        (1 - alpha) * variance[t - 2] / variance[t - 1]
    )  # variance of x_{t-1} given x_t, from the data's density
    drawn = mean + exact.sqrt() * torch.randn_like(mean)
    assert drawn.var().item() == pytest.approx(variance[t - 2].item(), rel=0.01)
    assert variance[t - 2] > 1.05 * variance[t - 1]


@pytest.mark.parametrize("s", [0.3, 1.0, 2.0])
def test_missing_root_loses_the_variance(s):
    """Data N(0, s²) on a line and the best noise model: the exact variance of both chains."""
    schedule = Diffusion(linear_betas(1000))
    left, betas = schedule.alphas_cumprod.double(), schedule.betas.double()
    slopes = (1 - betas / (left * s**2 + 1 - left)) / (1 - betas).sqrt()
    for power, low, high in ((0.5, 0.9, 1.0), (1.0, 0.0, 0.05)):
        v = 1.0
        for slope, added in zip(slopes.flip(0), schedule.posterior_variance.double().flip(0)):
            v = slope**2 * v + added ** (2 * power)
        assert low < v / s**2 < high


# What was checked and found right


def test_published_figures_agree_with_the_record(open_run):
    record = open_run("vae-bmnist")
    for bound, log_px in ((-100.49, -95.75), (-101.37, -95.58), (-101.22, -95.4)):
        assert abs(bound - record.figure("valid_elbo")) < 1
        assert abs(log_px - record.figure("test_log_px")) < 1


def test_formula_of_answer_1_5():
    for mean, deviation in ((0.0, 0.5), (100.0, 0.1)):
        answer = math.log(1 / deviation) + (deviation**2 + mean**2) / 2 - 0.5
        assert answer == pytest.approx(
            kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).item(), rel=1e-5
        )
