"""Diffusion: the chains and their losses, the network, the samplers.

The models themselves, and what is measured on them, are in the modules `ddpm` and `probes`.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

from .derivation import (
    Diffusion,
    cosine_betas,
    discretised_nll,
    extract,
    linear_betas,
    t_sample,
)
from .exact import GaussianMixtureNoise
from .sampling import denoise_from, sample_adams, sample_ancestral, sample_ddim
from .unet import UNet, sinusoidal_embedding

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    betas: Tensor
    alphas: Tensor
    sqrt_recip_alphas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    posterior_variance: Tensor
    q_sample: Callable[..., Tensor]
    p_sample: Callable[..., Tensor]
    p_sample_loop: Callable[..., Tensor]
    p_losses: Callable[..., Tensor]

__all__ = [
    "Diffusion",
    "GaussianMixtureNoise",
    "UNet",
    "alphas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "betas",
    "cosine_betas",
    "denoise_from",
    "discretised_nll",
    "extract",
    "linear_betas",
    "p_losses",
    "p_sample",
    "p_sample_loop",
    "posterior_variance",
    "q_sample",
    "sample_adams",
    "sample_ancestral",
    "sample_ddim",
    "sinusoidal_embedding",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas",
    "t_sample",
]

# The course has one schedule, of 1,000 linear steps, as arrays and plain functions of a module.
# Here a schedule is an object; these names are the buffers and methods of that one.
_OF_THE_COURSE = (
    "betas",
    "alphas",
    "sqrt_recip_alphas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "posterior_variance",
    "q_sample",
    "p_sample",
    "p_sample_loop",
    "p_losses",
)


@cache
def _course() -> Diffusion:
    return Diffusion(linear_betas(1000))


def __getattr__(name: str) -> Any:
    """A name of the course's, made when it is first asked for and not when genbook is imported."""
    if name in _OF_THE_COURSE:
        return getattr(_course(), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
