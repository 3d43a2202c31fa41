"""A DDPM's training step against the same in plain float32, in one run; and 64 samples by DDIM in 50 steps against all 1,000.

    python benchmarks/ddpm_step.py            20 steps of each, alternating in blocks of 2, and the samples
    python benchmarks/ddpm_step.py --smoke    toy data, a tiny network and a few steps, to see that it runs
"""

import argparse
import dataclasses
import time

import common
import torch
from torch import nn

from genbook import ddpm, training
from genbook.diffusion import t_sample
from genbook.gaussian_vae import scale_pixels
from genbook.samplers import sample_ddim
from genbook.unet import LinearAttention

BLOCK = 2  # steps of one before the other takes its turn


class PlainLinearAttention(nn.Module):
    """Linear attention as it is usually written: queries, keys and values of all pixels, channels first."""

    def __init__(self, ours):
        super().__init__()
        self.split, self.norm, self.norm_out = ours.split, ours.norm, ours.norm_out
        channels, hidden = ours.to_q.in_features, ours.to_q.out_features
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)
        with torch.no_grad():
            filters = torch.cat([layer.weight for layer in (ours.to_q, ours.to_k, ours.to_v)])
            self.to_qkv.weight.copy_(filters[:, :, None, None])
            self.to_out.weight.copy_(ours.to_out.weight[:, :, None, None])
            self.to_out.bias.copy_(ours.to_out.bias)

    def forward(self, x):
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, *self.split)).unbind(1)
        q = q.softmax(dim=2) * self.split[1] ** -0.5
        averages = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=3), v)
        taken = torch.einsum("bhde,bhdn->bhen", averages, q).flatten(1, 2)
        return x + self.norm_out(self.to_out(taken.unflatten(2, x.shape[2:])))


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
    for part in list(model.unet.modules()):
        for name, child in part.named_children():
            if isinstance(child, LinearAttention):
                setattr(part, name, PlainLinearAttention(child))
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr)

    def step(batch):
        x, t = scale_pixels(batch), t_sample(recipe.timesteps, len(batch))
        loss = model.diffusion.p_losses(model.unet, x, t)
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return Contender(model, step)


def ours(recipe):
    """A step as `genbook.training.fit` makes it, by its own parts."""
    layout = torch.channels_last if recipe.channels_last else torch.contiguous_format
    model = recipe.model().to(memory_format=layout)
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    compute = training.make_accelerator("cpu", recipe.precision).prepare_model(training.Objective(model, ddpm.objective))

    def step(batch):
        loss, _ = compute(batch.contiguous(memory_format=layout))
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return Contender(model, step)


def sampling(recipe, clock, n):
    """Seconds of `n` images by DDIM and by all steps, in float32."""
    model, found = recipe.model().eval(), {}
    x = model.noise(n)
    few = min(50, recipe.timesteps // 2)
    for name, draw in (
        (f"DDIM, {few} steps", lambda: sample_ddim(model.unet, model.diffusion, x, few)),
        (f"ancestral, {recipe.timesteps:,} steps", lambda: model.sample_ancestral(n)),
    ):
        began = clock()
        draw()
        found[name] = clock() - began
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="toy data, a tiny network, 4 steps")
    parser.add_argument("--recipe", default="ddpm-svhn-compact", help="ddpm-svhn for the full network")
    parser.add_argument("--steps", type=int, default=20, help="steps of each")
    parser.add_argument("--samples", type=int, default=64, help="images to draw by each sampler; 0 for none")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor: with --threads 1 fair on a busy machine")
    parser.add_argument("--data-root", help="folder of the data sets")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    recipe = ddpm.RECIPES[options.recipe]
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
    parameters = sum(p.numel() for p in base.model.parameters())
    print(f"\n{parameters / 1e6:.2f} million parameters, batch size {recipe.batch_size}, {steps} steps of each, alternating in blocks of {BLOCK}; medians.")
    lines = [["step", "ms", "times as fast", "loss, all steps", "less the plain one's"]]
    for name, contender in contenders.items():
        gap = torch.tensor(contender.losses) - torch.tensor(base.losses)
        told = f"{gap.mean():+.4f}, {gap.abs().max():.4f} at most" if contender is not base else ""
        ms = common.median(contender.seconds) * 1e3
        ratio = common.median(base.seconds) / common.median(contender.seconds)
        lines.append([name, f"{ms:.1f}", f"{ratio:.2f}", f"{sum(contender.losses) / steps:.4f}", told])
    common.table(lines)
    n = 4 if options.smoke else options.samples
    if n:
        print()
        seconds = sampling(recipe, clock, n)
        slowest = max(seconds.values())
        lines = [[f"{n} samples", "seconds", "times as fast"]]
        lines += [[name, f"{value:.2f}", f"{slowest / value:.1f}"] for name, value in seconds.items()]
        common.table(lines)


if __name__ == "__main__":
    main()
