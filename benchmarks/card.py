"""A training step on two cores and on a graphics card: as it is, as one graph, and the least that its arithmetic and its bytes would take.

python benchmarks/card.py                     20 steps on the processor, and 200 on the card where there is one
python benchmarks/card.py --compile           also compiled on the processor, which takes minutes to build
python benchmarks/card.py --smoke             small networks, and graphs that are run as they are, to see that it works
"""

import argparse
import time

import common
import torch
from torch.utils.flop_counter import FlopCounterMode

from genbook import families
from genbook.descent import has_bf16, in_precision
from genbook.graphs import compile_players
from genbook.players import Mover, Player

NAMES = ("vae-bmnist-fast", "vae-svhn", "ddpm-svhn", "simsiam-cifar10")


def rates(device, size):
    """What the device does at best: multiply-adds a second in each precision, and bytes a second of a copy."""
    found = {}
    for precision in ("fp32", "bf16") if has_bf16(device) else ("fp32",):
        dtype = torch.float32 if precision == "fp32" else torch.bfloat16
        a = torch.randn(size, size, device=device, dtype=dtype)
        found[precision] = size**3 / best(lambda: a @ a, device)
    x = torch.randn(size * size, device=device)
    found["bytes"] = 2 * 4 * size**2 / best(lambda: x.clone(), device)
    return found


def wait(device):
    if device == "cuda":
        torch.cuda.synchronize()


def best(work, device, tries=5):
    """The shortest of several tries, in seconds."""
    seconds = []
    for _ in range(tries + 1):
        began = time.perf_counter()
        work()
        wait(device)
        seconds.append(time.perf_counter() - began)
    return min(seconds[1:])


class Step:
    """A training step of a recipe on random images, as `fit` takes it."""

    def __init__(self, recipe, device):
        torch.manual_seed(0)
        self.recipe, self.device = recipe, device
        layout = getattr(recipe, "channels_last", False)
        self.layout = torch.channels_last if layout else torch.contiguous_format
        self.model = recipe.model().to(device, memory_format=self.layout)
        make = lambda weights: torch.optim.Adam(weights, lr=1e-4, fused=True)
        self.mover = Mover(Player("", recipe.objective()), self.model, make, 1)
        side, channels = (28, 1) if "digits" in recipe.data or "mnist" in recipe.data else (32, 3)
        shape = (recipe.batch_size, channels, side, side)
        images = torch.randint(0, 2 if side == 28 else 256, shape, dtype=torch.uint8)
        self.batch = images.to(device).contiguous(memory_format=self.layout)

    def __call__(self):
        self.mover.optimizer.zero_grad()
        with in_precision(self.recipe.precision, self.device):
            loss, _ = self.mover.compute(self.batch)
        loss.backward()
        self.mover.optimizer.step()

    def compile(self, options):
        """Make it a graph; what could not be is said."""
        with in_precision(self.recipe.precision, self.device):
            told = compile_players(self.model, [self.mover], lambda _: None, self.batch, options)
        for sentence in told:
            print(sentence)
        return not told

    def cost(self):
        """Multiply-adds of a step, and bytes that it must move at the least.

        A weight is read forwards and backwards; its gradient is written and read; Adam reads and writes it and two averages.
        What is kept for the way back is written once and read once.
        """
        kept = {}

        def pack(x):
            kept[x.data_ptr()] = x.numel() * x.element_size()
            return x

        hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with FlopCounterMode(display=False) as counter, hooks:
            self()
        weights = 4 * sum(p.numel() for p in self.model.parameters())
        return counter.get_total_flops() / 2, (2 + 2 + 6) * weights + 2 * sum(kept.values())


def measured(recipe, device, steps, options, at_best):
    """Milliseconds of a step as it is and as a graph, and the two limits."""
    step = Step(recipe, device)
    step()
    multiply_adds, moved = step.cost()
    precision = recipe.precision if recipe.precision in at_best else "fp32"
    limits = [multiply_adds / at_best[precision], moved / at_best["bytes"]]
    seconds = [seconds_of(step, steps)]
    if options is not None:
        seconds.append(seconds_of(step, steps) if step.compile(options) else None)
    shown = [f"{1e3 * value:.2f}" if value is not None else "no graph" for value in seconds]
    return [*shown, *["not tried"][: 2 - len(shown)], *(f"{1e3 * value:.2f}" for value in limits)]


def seconds_of(step, steps):
    """Median seconds of a step; on a card of ten at a time, since one is not waited for."""
    many = 10 if step.device == "cuda" else 1
    found = []
    for _ in range(max(3, steps // many)):
        wait(step.device)
        began = time.perf_counter()
        for _ in range(many):
            step()
        wait(step.device)
        found.append((time.perf_counter() - began) / many)
    return common.median(found)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="small networks and a few steps")
    parser.add_argument("--steps", type=int, default=20, help="of each on the processor")
    parser.add_argument("--compile", action="store_true", help="compile on the processor too")
    parser.add_argument("--recipes", default=",".join(NAMES), help="names with commas")
    parser.add_argument("--threads", type=int, help="threads of torch")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(common.machine(), flush=True)
    of_processor = {"backend": "aot_eager"} if options.smoke else {} if options.compile else None
    ways = [("cpu", 3 if options.smoke else options.steps, of_processor)]
    if torch.cuda.is_available():
        print(torch.cuda.get_device_name())
        ways.append(("cuda", 200, {"mode": "reduce-overhead"}))
    recipes = families.all_recipes()
    lines = [["step", "on", "ms", "ms, one graph", "ms, arithmetic alone", "ms, bytes alone"]]
    for device, steps, graph in ways:
        at_best = rates(device, 256 if options.smoke else 4096 if device == "cuda" else 2048)
        for name in options.recipes.split(","):
            recipe = recipes[name][1]
            recipe = recipe.smoke() if options.smoke else recipe
            lines.append([name, device, *measured(recipe, device, steps, graph, at_best)])
    if len(ways) == 1:
        lines.append(["all", "one GPU", *["not measured"] * 4])
    common.table(lines)
    if len(ways) == 1:
        print("There is no CUDA device here: nothing is said of one.")


if __name__ == "__main__":
    main()
