"""A training step of the Gaussian VAE: the recipe's objective, precision and order in memory, against plain float32, in one run.

python benchmarks/gaussian_vae.py            200 steps of each, alternating in blocks of 20
python benchmarks/gaussian_vae.py --smoke    toy data and a few steps, to see that it runs
"""

import dataclasses

import common
import torch
import torch.nn.functional as F
from torch import nn

from genbook.descent import OPTIMIZERS
from genbook.vae import gaussian as gaussian_vae
from genbook.vae import gaussian_model

BLOCK = 20  # steps of one before the other takes its turn


class PlainVAE(nn.Module):
    """The network of the assignment as it would be written down: pixels as floats, contiguous, float32."""

    def __init__(self, latent=32):
        super().__init__()
        layers, channels = [], 3
        for width in (32, 64, 128, 256):
            layers += [
                nn.Conv2d(channels, width, 4, 2, 1),
                nn.LeakyReLU(0.2),
                nn.BatchNorm2d(width),
            ]
            channels = width
        self.encoder = nn.Sequential(*layers, nn.Flatten())
        self.mean, self.logvar = nn.Linear(1024, latent), nn.Linear(1024, latent)
        layers = [nn.Linear(latent, 1024), nn.Unflatten(1, (256, 2, 2))]
        for width in (128, 64, 32, 3):
            layers += [nn.Upsample(scale_factor=2), nn.Conv2d(channels, width, 3, padding=1)]
            layers += [nn.LeakyReLU(0.2), nn.BatchNorm2d(width)] if width != 3 else []
            channels = width
        self.decoder = nn.Sequential(*layers)

    def loss(self, x):
        h = self.encoder(x)
        mean, logvar = self.mean(h), self.logvar(h).clamp(-30, 20)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        nll = 0.5 * (gaussian_model.LOG_2PI + F.mse_loss(self.decoder(z), x, reduction="none")).sum(
            (1, 2, 3)
        )
        kl = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar).sum(1)
        return (nll + kl).mean()


def plain(recipe):
    model = PlainVAE(recipe.latent)
    model.load_state_dict(recipe.model().state_dict())
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr)
    return common.Contender(model, lambda batch: model.loss(batch.float() / 127.5 - 1), adam)


def ours(recipe):
    model = recipe.model()
    loss = common.book_loss(model, gaussian_model.elbo_objective, recipe)
    return common.Contender(
        model, loss, OPTIMIZERS[recipe.optimizer](model.parameters(), lr=recipe.lr)
    )


def main():
    options = common.step_options(__doc__, 200, "toy data, 20 steps").parse_args()
    clock = common.set_up(options)
    recipe = gaussian_vae.RECIPES["vae-svhn"]
    recipe = recipe.smoke() if options.smoke else recipe
    fp32 = dataclasses.replace(recipe, precision="fp32", channels_last=False)
    contenders = {
        "plain, fp32": plain(recipe),
        "book, fp32": ours(fp32),
        "book, fp32, channels last": ours(dataclasses.replace(fp32, channels_last=True)),
        "book, bf16": ours(dataclasses.replace(recipe, channels_last=False)),
        "book, bf16, channels last": ours(recipe),
    }
    common.take_turns(
        contenders,
        recipe,
        2 if options.smoke else options.steps,
        BLOCK,
        clock,
        options.data_root,
    )
    common.report(contenders, "plain, fp32", last=20, digits=2)
    noise = torch.tensor(contenders["plain, fp32"].losses[-100:]).std().item()
    print(
        f"\nFrom batch to batch the loss varies by {noise:.2f} (standard deviation of the last steps)."
    )


if __name__ == "__main__":
    main()
