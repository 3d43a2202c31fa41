"""What the benchmarks share: the course's starter, the machine's speed, steps that take turns, tables."""

import argparse
import math
import os
import platform
import re
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from genbook import data, runs
from genbook.descent import epoch_order, has_bf16, make_accelerator
from genbook.machine import keep_freed_memory
from genbook.players import Objective
from genbook.randomness import random_states, seed_everything, set_random_states
from genbook.vae import binarised_mnist as vae


class StarterVAE(nn.Module):
    """The course's network for binary images, 784–300–300–2L and L–300–300–784, as its starter code writes it."""

    def __init__(self, latent=100):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(784, 300), nn.ELU(), nn.Linear(300, 300), nn.ELU(), nn.Linear(300, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, 300), nn.ELU(), nn.Linear(300, 300), nn.ELU(), nn.Linear(300, 784)
        )

    def encode(self, x):
        return self.encoder(x.view(x.size(0), -1)).chunk(2, dim=1)

    def decode(self, z):
        return self.decoder(z) - 5.0

    def forward(self, x):
        mean, logvar = self.encode(x)
        z = mean + torch.exp(logvar / 2.0) * torch.randn_like(mean)
        return mean, logvar, self.decode(z)

    def loss(self, x, mean, logvar, decoded):
        log_likelihood = starter_log_likelihood_bernoulli(
            torch.sigmoid(decoded), x.view(x.size(0), -1)
        )
        divergence = 0.5 * torch.sum(-1 - logvar + mean**2 + torch.exp(logvar), dim=1)
        return (divergence - log_likelihood).mean()


def starter_log_likelihood_bernoulli(mu, target):
    """From the mean. The stable form of torch stands for the sum of logarithms, which would be slower and can be NaN."""
    return -F.binary_cross_entropy(mu, target, reduction="none").sum(1)


def starter_log_likelihood_normal(mu, logvar, z):
    return torch.sum(
        -0.5 * (math.log(2 * math.pi) + logvar + (z - mu) ** 2 / torch.exp(logvar)), dim=1
    )


def linear_parameters(model):
    """The weights that take part in matrix products."""
    return sum(layer.weight.numel() for layer in model.modules() if isinstance(layer, nn.Linear))


def same_weights(starter, model):
    """Give the starter's network the weights of one of ours."""
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
    with torch.no_grad():
        for mine, theirs in zip(
            (layer for layer in starter.modules() if isinstance(layer, nn.Linear)),
            layers,
            strict=True,
        ):
            mine.weight.copy_(theirs.weight)
            mine.bias.copy_(theirs.bias)
    return starter


def load(name, split, root=None):
    """The images of a split, or a message that says how to get them."""
    try:
        return data.load(name, split, root, download=False).images
    except data.DataError as error:
        sys.exit(f"{error}\nor try the benchmark on toy data: --smoke")


def product_rates(size=2048, repeats=5, clock=time.perf_counter):
    """Multiply-adds of square matrix products in float32 and bfloat16, in GFLOP/s: the best of several tries.

    Where the processor has no bfloat16 the book computes in float32, and that is the rate.
    """
    rates = {}
    for precision, dtype in (
        ("fp32", torch.float32),
        ("bf16", torch.bfloat16 if has_bf16("cpu") else torch.float32),
    ):
        a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
        a @ b
        seconds = []
        for _ in range(repeats):
            began = clock()
            a @ b
            seconds.append(clock() - began)
        rates[precision] = 2 * size**3 / min(seconds) / 1e9
    return rates


def machine():
    """Processor, cores, threads and versions, in a line."""
    device = runs.device_info("cpu")
    load = f", load {os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else ""
    return (
        f"{device['name']}, {device['cores']} cores, {device['threads']} threads{load}; "
        f"Python {platform.python_version()}, torch {torch.__version__}"
        + ("" if has_bf16("cpu") else "; no bfloat16, so that float32 stands in its place")
    )


def peak_memory():
    """Largest memory of this process so far, in GB. On Linux the counter of `resource` begins at that of the process that started this one."""
    if sys.platform == "linux":
        return (
            int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text("utf-8"))[1])
            * 1024
            / 1e9
        )
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e9


def table(rows):
    """Print rows of text as a table that is Markdown too."""
    rows = [[str(value) for value in row] for row in rows]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for number, row in enumerate(rows):
        print(
            "| "
            + " | ".join(value.ljust(width) for value, width in zip(row, widths, strict=True))
            + " |"
        )
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")


def recipe(name, smoke):
    """A recipe of the book, or its rehearsal."""
    return vae.RECIPES[name].smoke() if smoke else vae.RECIPES[name]


class Contender:
    """A model and its way of making a step; seconds and losses of all steps so far."""

    def __init__(self, model, loss, optimizer):
        self.model, self.loss, self.optimizer = model, loss, optimizer
        self.seconds, self.losses = [], []

    def step(self, batch):
        loss = self.loss(batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss

    def block(self, batches, clock):
        for batch in batches:
            began = clock()
            loss = self.step(batch)
            self.seconds.append(clock() - began)
            self.losses.append(loss.item())


def book_loss(model, objective, recipe):
    """The loss of a batch as `genbook.training.fit` computes it, by its own parts."""
    last = getattr(recipe, "channels_last", False)
    layout = torch.channels_last if last else torch.contiguous_format
    model.to(memory_format=layout)
    compute = make_accelerator("cpu", recipe.precision).prepare_model(Objective(model, objective))
    return lambda batch: compute(batch.contiguous(memory_format=layout))[0]


def step_options(description, steps, smoke):
    """The parser of a benchmark that times steps, for options of its own to be added."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help=smoke)
    parser.add_argument("--steps", type=int, default=steps, help="steps of each")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count seconds of the processor: with --threads 1 fair on a busy machine",
    )
    parser.add_argument("--data-root", help="folder of the data sets")
    return parser


def set_up(options):
    """Threads as asked for, and the clock; tells the machine."""
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    print(machine(), flush=True)
    return time.process_time if options.cpu_time else time.perf_counter


def take_turns(contenders, recipe, steps, block, clock, data_root=None):
    """Let each make the same steps on the same batches, in blocks by turns.

    Each draws noise of its own from the recipe's seed, so that losses differ by rounding.
    """
    images, size = load(recipe.data, "train", data_root), recipe.batch_size
    order = torch.cat(
        [
            epoch_order(len(images), recipe.seed, epoch)
            for epoch in range(1, 2 + steps * size // len(images))
        ]
    )
    batches = [images[order[i * size : (i + 1) * size]] for i in range(steps)]
    states = {}
    for name in contenders:
        seed_everything(recipe.seed)
        states[name] = random_states()
    for start in range(0, steps, block):
        for name, contender in contenders.items():
            set_random_states(states[name])
            contender.block(batches[start : start + block], clock)
            states[name] = random_states()
    print(f"\nBatch size {size}, {steps} steps of each, alternating in blocks of {block}; medians.")


def report(contenders, base, last, digits):
    """Print milliseconds a step, their ratio to the first's, and the losses of the last steps."""
    base = contenders[base]
    lines = [
        [
            "step",
            "ms",
            "times as fast",
            f"loss, last {last} steps",
            "less the plain one's, all steps",
        ]
    ]
    for name, contender in contenders.items():
        gap = torch.tensor(contender.losses) - torch.tensor(base.losses)
        told = (
            f"{gap.mean():+.{digits}f}, {gap.abs().max():.{digits}f} at most"
            if contender is not base
            else ""
        )
        ms = median(contender.seconds) * 1e3
        ratio = median(base.seconds) / median(contender.seconds)
        lines.append(
            [
                name,
                f"{ms:.1f}",
                f"{ratio:.2f}",
                f"{sum(contender.losses[-last:]) / last:.{digits}f}",
                told,
            ]
        )
    table(lines)


median = statistics.median
