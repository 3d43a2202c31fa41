"""A critic's step with its penalty, against the same in plain float32 with PyTorch's layers, in one run; and a generator's 1,000 samples.

    python benchmarks/critic_step.py            100 steps of each, alternating in blocks of 10
    python benchmarks/critic_step.py --smoke    toy data, narrow networks and a few steps, to see that it runs
"""

import argparse
import dataclasses
import time
from functools import partial

import common
import torch
from torch import nn

from genbook import training, wgan

BLOCK = 10  # steps of one before the other takes its turn


class PlainCritic(nn.Module):
    """The course's critic, of PyTorch's layers, with the weights of one of ours."""

    def __init__(self, critic):
        super().__init__()
        self.last = nn.Conv2d(critic.last.in_channels, 1, 4)
        width = critic.last.in_channels // 4
        self.body = nn.Sequential(
            nn.Conv2d(3, width, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(width, 2 * width, 4, 2, 1), nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, 1), nn.LeakyReLU(0.2),
        )  # fmt: skip
        self.load_state_dict(critic.state_dict())

    def forward(self, x):
        return self.last(self.body(x)).flatten()


class Contender:
    """A model and its way of making a step; seconds and losses of all steps so far."""

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
    """The step as it would be written down from the formulas."""
    model = recipe.model()
    critic = PlainCritic(model.critic)
    adam = torch.optim.Adam(critic.parameters(), lr=recipe.lr, betas=recipe.betas)

    def step(batch):
        real = batch.float() / 127.5 - 1
        fake = model.generator(torch.randn(len(real), recipe.latent)).detach()
        t = torch.rand(len(real), 1, 1, 1)
        between = (t * real + (1 - t) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = torch.relu(slope.flatten(1).norm(dim=1) - 1).square().mean()
        loss = critic(fake).mean() - critic(real).mean() + recipe.penalty_weight * penalty
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return Contender(model, step)


def ours(recipe, torch_layers=False):
    """A step as `genbook.training.fit` makes it, by its own parts."""
    model = recipe.model()
    if torch_layers:
        model.critic = PlainCritic(model.critic)
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model.to(memory_format=layout)
    model.generator.requires_grad_(False)
    adam = torch.optim.Adam(model.critic.parameters(), lr=recipe.lr, betas=recipe.betas, fused=True)
    objective = partial(wgan.critic_objective, penalty_weight=recipe.penalty_weight)
    compute = training.make_accelerator("cpu", recipe.precision).prepare_model(training.Objective(model, objective))

    def step(batch):
        loss, _ = compute(batch.contiguous(memory_format=layout))
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return Contender(model, step)


def sampling(recipe, clock, n=1000, repeats=3):
    """Seconds of `n` images by a generator, in float32 and under bfloat16 with channels last."""
    found = {}
    for name, bf16, layout in (("fp32", False, torch.contiguous_format), ("bf16, channels last", True, torch.channels_last)):
        model = recipe.model().eval().to(memory_format=layout)
        seconds = []
        for _ in range(repeats):
            began = clock()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                model.sample(n)
            seconds.append(clock() - began)
        found[name] = common.median(seconds)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy data, narrow networks, 20 steps")
    parser.add_argument("--steps", type=int, default=100, help="steps of each")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor: with --threads 1 fair on a busy machine")
    parser.add_argument("--data-root", help="folder of the data sets")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    recipe = wgan.RECIPES["wgan-svhn"]
    recipe = recipe.smoke() if options.smoke else recipe
    images = common.load(recipe.data, "train", options.data_root)
    steps = 2 * BLOCK if options.smoke else options.steps

    print(common.machine(), flush=True)
    order = torch.cat([training.epoch_order(len(images), recipe.seed, epoch) for epoch in range(1, 2 + steps * recipe.batch_size // len(images))])
    batches = [images[order[i * recipe.batch_size : (i + 1) * recipe.batch_size]] for i in range(steps)]
    fp32 = dataclasses.replace(recipe, precision="fp32", channels_last=False)
    contenders = {
        "plain, fp32": plain(fp32),
        "book, fp32": ours(fp32),
        "torch's layers, bf16, channels last": ours(recipe, torch_layers=True),
        "book, bf16": ours(dataclasses.replace(recipe, channels_last=False)),
        "book, bf16, channels last": ours(recipe),
    }
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
    lines = [["step", "ms", "times as fast", f"loss, last {BLOCK} steps", "less the plain one's, all steps"]]
    for name, contender in contenders.items():
        gap = torch.tensor(contender.losses) - torch.tensor(base.losses)
        told = f"{gap.mean():+.3f}, {gap.abs().max():.3f} at most" if contender is not base else ""
        ms = common.median(contender.seconds) * 1e3
        ratio = common.median(base.seconds) / common.median(contender.seconds)
        lines.append([name, f"{ms:.1f}", f"{ratio:.2f}", f"{sum(contender.losses[-BLOCK:]) / BLOCK:.3f}", told])
    common.table(lines)
    n = 100 if options.smoke else 1000
    print()
    lines = [[f"{n:,} samples", "seconds", "times as fast"]]
    seconds = sampling(recipe, clock, n)
    lines += [[name, f"{value:.2f}", f"{seconds['fp32'] / value:.2f}"] for name, value in seconds.items()]
    common.table(lines)


if __name__ == "__main__":
    main()
