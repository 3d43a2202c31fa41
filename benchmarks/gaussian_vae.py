"""A training step of the Gaussian VAE: the recipe's objective, precision and order in memory, against plain float32, in one run.

    python benchmarks/gaussian_vae.py            200 steps of each, alternating in blocks of 20
    python benchmarks/gaussian_vae.py --smoke    toy data and a few steps, to see that it runs
"""

import argparse
import dataclasses
import time

import common
import torch
import torch.nn.functional as F
from torch import nn

from genbook import gaussian_vae, training

BLOCK = 20  # steps of one before the other takes its turn


class PlainVAE(nn.Module):
    """The network of the assignment as it would be written down: pixels as floats, contiguous, float32."""

    def __init__(self, latent=32):
        super().__init__()
        layers, channels = [], 3
        for width in (32, 64, 128, 256):
            layers += [nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.BatchNorm2d(width)]
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
        nll = 0.5 * (gaussian_vae.LOG_2PI + F.mse_loss(self.decoder(z), x, reduction="none")).sum((1, 2, 3))
        kl = 0.5 * (mean**2 + torch.exp(logvar) - 1 - logvar).sum(1)
        return (nll + kl).mean()


class Contender:
    """A model, its optimiser and its way of making a step; seconds and losses of all steps so far."""

    def __init__(self, model, step):
        self.model, self.step = model, step
        self.seconds, self.losses = [], []

    def block(self, batches, clock):
        for batch in batches:
            began = clock()
            loss = self.step(batch)
            self.seconds.append(clock() - began)
            self.losses.append(loss.item())


def plain(recipe):
    model = PlainVAE(recipe.latent)
    model.load_state_dict(recipe.model().state_dict())
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr)

    def step(batch):
        loss = model.loss(batch.float() / 127.5 - 1)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return Contender(model, step)


def ours(recipe):
    """A step as `genbook.training.fit` makes it, by its own parts."""
    model = recipe.model()
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    adam = training.OPTIMIZERS[recipe.optimizer](model.parameters(), lr=recipe.lr)
    compute = training.make_accelerator("cpu", recipe.precision).prepare_model(training.Objective(model, gaussian_vae.objective))

    def step(batch):
        loss, _ = compute(batch.contiguous(memory_format=layout))
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return Contender(model, step)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy data, 20 steps")
    parser.add_argument("--steps", type=int, default=200, help="steps of each")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor: with --threads 1 fair on a busy machine")
    parser.add_argument("--data-root", help="folder of the data sets")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    recipe = gaussian_vae.RECIPES["vae-svhn"]
    recipe = recipe.smoke() if options.smoke else recipe
    images = common.load(recipe.data, "train", options.data_root)
    steps = BLOCK if options.smoke else options.steps

    print(common.machine(), flush=True)
    order = torch.cat([training.epoch_order(len(images), recipe.seed, epoch) for epoch in range(1, 2 + steps * recipe.batch_size // len(images))])
    batches = [images[order[i * recipe.batch_size : (i + 1) * recipe.batch_size]] for i in range(steps)]
    fp32 = dataclasses.replace(recipe, precision="fp32", channels_last=False)
    contenders = {
        "plain, fp32": plain(recipe),
        "book, fp32": ours(fp32),
        "book, fp32, channels last": ours(dataclasses.replace(fp32, channels_last=True)),
        "book, bf16": ours(dataclasses.replace(recipe, channels_last=False)),
        "book, bf16, channels last": ours(recipe),
    }
    # Each draws noise of its own, from the same seed: the losses differ by noise and rounding.
    states = {}
    for name in contenders:
        training.seed_everything(recipe.seed)
        states[name] = training.random_states()
    for start in range(0, steps, BLOCK):
        for name, contender in contenders.items():
            training.set_random_states(states[name])
            contender.block(batches[start : start + BLOCK], clock)
            states[name] = training.random_states()

    base = contenders["plain, fp32"]
    print(f"\nBatch size {recipe.batch_size}, {steps} steps of each, alternating in blocks of {BLOCK}; medians.")
    lines = [["step", "ms", "times as fast", "loss, last 20 steps", "less the plain one's, all steps"]]
    for name, contender in contenders.items():
        gap = torch.tensor(contender.losses) - torch.tensor(base.losses)
        told = f"{gap.mean():+.2f}, {gap.abs().max():.2f} at most" if contender is not base else ""
        ms = common.median(contender.seconds) * 1e3
        ratio = common.median(base.seconds) / common.median(contender.seconds)
        lines.append([name, f"{ms:.1f}", f"{ratio:.2f}", f"{sum(contender.losses[-20:]) / 20:.2f}", told])
    common.table(lines)
    noise = torch.tensor(base.losses[-100:]).std().item()
    print(f"\nFrom batch to batch the loss varies by {noise:.2f} (standard deviation of the last steps).")


if __name__ == "__main__":
    main()
