"""The names that the course and the documents use are importable, each by its own name from its part."""

import importlib

import pytest

NAMES = {
    "genbook.likelihoods": (
        "log_likelihood_bernoulli",
        "log_likelihood_normal",
        "log_mean_exp",
    ),
    "genbook.divergences": ("kl_gaussian_gaussian_analytic", "kl_gaussian_gaussian_mc"),
    "genbook.vae": ("DiagonalGaussianDistribution", "VAE", "interpolate"),
    "genbook.gan": (
        "distribution1",
        "lp_reg",
        "vf_squared_hellinger",
        "vf_wasserstein_distance",
    ),
    "genbook.diffusion": (
        "alphas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "betas",
        "extract",
        "p_losses",
        "p_sample",
        "p_sample_loop",
        "posterior_variance",
        "q_sample",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "sqrt_recip_alphas",
        "t_sample",
    ),
    "genbook.selfsupervised": ("CosineSimilarity", "SimSiam"),
}


@pytest.mark.parametrize("part", NAMES)
def test_every_name_is_importable_from_its_part(part):
    module = importlib.import_module(part)
    missing = [name for name in NAMES[part] if not hasattr(module, name)]
    assert not missing, f"{part} lacks {missing}"


def test_one_name_has_one_meaning():
    """A class of a part is not called as another of the book is."""
    modules = (
        "genbook.gan.minimax",
        "genbook.gan.wgan",
        "genbook.judges.classifier",
        "genbook.vae.binarised_mnist",
        "genbook.vae.gaussian",
    )
    owners: dict[str, set[str]] = {}
    for name in modules:
        module = importlib.import_module(name)
        for key, value in vars(module).items():
            if isinstance(value, type) and value.__module__ == name and key[0] != "_":
                owners.setdefault(key, set()).add(name)
    assert not {key: found for key, found in owners.items() if len(found) > 1}
    assert "VAE" not in owners  # the course's name is an alias, beside BernoulliVAE
