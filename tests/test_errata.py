"""Each erratum of the book, held against the records and the package's functions; nothing is trained here."""

import math

import pytest
import torch
from torch.distributions import Normal, kl_divergence

from genbook.diffusion import Diffusion, linear_betas
from genbook.divergences import kl_gaussian_gaussian_analytic, kl_gaussian_gaussian_mc
from genbook.elbo import reparameterise
from genbook.runs import Run
from genbook.vae import RECIPES, build, elbo_of, unscaled_noise_objective


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
    alone = torch.cat([kl_gaussian_gaussian_analytic(*(t[i : i + 1] for t in (mu, logvar, zero, zero))) for i in range(64)])
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
    assert -last["train_loss"] - last["train_elbo"] == pytest.approx((1 - 0.64) * last["train_kl"], abs=0.01)


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
    torch.testing.assert_close(loss, 0.5 * x.square().sum(1).mean())  # no noise, and the KL of μ alone


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
    same = ("data", "network", "hidden", "activation", "latent", "epochs", "batch_size", "optimizer", "lr", "seed")
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
    log_likelihood, divergence = elbo_of(bad, images)
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
        assert answer == pytest.approx(kl_divergence(Normal(mean, deviation), Normal(0.0, 1.0)).item(), rel=1e-5)
