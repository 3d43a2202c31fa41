"""Adversarial networks: critics and the distances they measure, the minimax GAN, the WGAN."""

from genbook.gan.critics import (
    F_DIVERGENCES,
    OBJECTIVES,
    FDivergence,
    between,
    critic_loss,
    distribution1,
    lp_reg,
    make_critic,
    slopes_and_scores,
    variational_bound,
    vf_squared_hellinger,
    vf_wasserstein_distance,
)
from genbook.gan.minimax import (
    GAN,
    DigitClassifier,
    GANRecipe,
    MLPDiscriminator,
    MLPGenerator,
)
from genbook.gan.smooth_layers import HalvingConv2d, LeakyReLU
from genbook.gan.two_lines import CriticRecipe, generator_signal, train_critic
from genbook.gan.wgan import WGAN, Critic, Generator, WGANRecipe, update_batch_statistics

__all__ = [
    "F_DIVERGENCES",
    "GAN",
    "OBJECTIVES",
    "WGAN",
    "Critic",
    "CriticRecipe",
    "DigitClassifier",
    "FDivergence",
    "GANRecipe",
    "Generator",
    "HalvingConv2d",
    "LeakyReLU",
    "MLPDiscriminator",
    "MLPGenerator",
    "WGANRecipe",
    "between",
    "critic_loss",
    "distribution1",
    "generator_signal",
    "lp_reg",
    "make_critic",
    "slopes_and_scores",
    "train_critic",
    "update_batch_statistics",
    "variational_bound",
    "vf_squared_hellinger",
    "vf_wasserstein_distance",
]
