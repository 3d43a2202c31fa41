"""Variational autoencoders: the bound, weighted draws, ways between latents, and two models."""

from genbook.vae.binarised_mnist import BernoulliVAE, VAERecipe
from genbook.vae.elbo import active_units, elbo_terms, reparameterise
from genbook.vae.gaussian import GaussianVAERecipe, interpolate
from genbook.vae.gaussian_model import (
    DiagonalGaussianDistribution,
    GaussianVAE,
    bits_per_dimension,
)
from genbook.vae.importance import (
    effective_sample_size,
    importance_log_likelihood,
    iwae_bound,
    log_importance_weights,
)
from genbook.vae.latents import latent_path

VAE = GaussianVAE  # the course's name

__all__ = [
    "VAE",
    "BernoulliVAE",
    "DiagonalGaussianDistribution",
    "GaussianVAE",
    "GaussianVAERecipe",
    "VAERecipe",
    "active_units",
    "bits_per_dimension",
    "effective_sample_size",
    "elbo_terms",
    "importance_log_likelihood",
    "interpolate",
    "iwae_bound",
    "latent_path",
    "log_importance_weights",
    "reparameterise",
]
