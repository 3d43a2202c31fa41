"""A critic's step with its penalty, against the same in plain float32 with PyTorch's layers, in one run; and a generator's 1,000 samples.

python benchmarks/critic_step.py            100 steps of each, alternating in blocks of 10
python benchmarks/critic_step.py --smoke    toy data, narrow networks and a few steps, to see that it runs
"""

import dataclasses
from functools import partial

import common
import torch
from torch import nn

from genbook.gan import wgan

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


def plain(recipe):
    """The step as it would be written down from the formulas."""
    model = recipe.model()
    critic = PlainCritic(model.critic)
    adam = torch.optim.Adam(critic.parameters(), lr=recipe.lr, betas=recipe.betas)

    def loss(batch):
        real = batch.float() / 127.5 - 1
        fake = model.generator(torch.randn(len(real), recipe.latent)).detach()
        t = torch.rand(len(real), 1, 1, 1)
        between = (t * real + (1 - t) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        penalty = torch.relu(slope.flatten(1).norm(dim=1) - 1).square().mean()
        return critic(fake).mean() - critic(real).mean() + recipe.penalty_weight * penalty

    return common.Contender(model, loss, adam)


def ours(recipe, torch_layers=False):
    model = recipe.model()
    if torch_layers:
        model.critic = PlainCritic(model.critic)
    model.generator.requires_grad_(False)
    objective = partial(wgan.critic_objective, penalty_weight=recipe.penalty_weight)
    loss = common.book_loss(model, objective, recipe)
    adam = torch.optim.Adam(model.critic.parameters(), lr=recipe.lr, betas=recipe.betas, fused=True)
    return common.Contender(model, loss, adam)


def sampling(recipe, clock, n=1000, repeats=3):
    """Seconds of `n` images by a generator, in float32 and under bfloat16 with channels last."""
    found = {}
    for name, bf16, layout in (
        ("fp32", False, torch.contiguous_format),
        ("bf16, channels last", True, torch.channels_last),
    ):
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
    options = common.step_options(__doc__, 100, "toy data, narrow networks, 20 steps").parse_args()
    clock = common.set_up(options)
    recipe = wgan.RECIPES["wgan-svhn"]
    recipe = recipe.smoke() if options.smoke else recipe
    fp32 = dataclasses.replace(recipe, precision="fp32", channels_last=False)
    contenders = {
        "plain, fp32": plain(fp32),
        "book, fp32": ours(fp32),
        "book, fp32, channels last": ours(dataclasses.replace(fp32, channels_last=True)),
        "torch's layers, bf16, channels last": ours(recipe, torch_layers=True),
        "book, bf16": ours(dataclasses.replace(recipe, channels_last=False)),
        "book, bf16, channels last": ours(recipe),
    }
    steps = 4 if options.smoke else options.steps
    common.take_turns(contenders, recipe, steps, BLOCK, clock, options.data_root)
    common.report(contenders, "plain, fp32", last=BLOCK, digits=3)
    n = 100 if options.smoke else 1000
    print()
    lines = [[f"{n:,} samples", "seconds", "times as fast"]]
    seconds = sampling(recipe, clock, n)
    lines += [
        [name, f"{value:.2f}", f"{seconds['fp32'] / value:.2f}"] for name, value in seconds.items()
    ]
    common.table(lines)


if __name__ == "__main__":
    main()
