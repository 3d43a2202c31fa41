"""Seconds of training: the book's loop against the loop as the course's starter writes it, epoch by epoch in one run.

python benchmarks/vae_training.py            three epochs of each; what takes longer is worked out from them
python benchmarks/vae_training.py --full     all 20 epochs of each, and the shortest way to a bound of -102
python benchmarks/vae_training.py --smoke    toy data, to see that it runs
"""

import argparse
import dataclasses
import time

import common
import torch
from torch.utils.data import DataLoader, TensorDataset

from genbook import runs, training
from genbook.vae import binarised_mnist as vae

TARGET = -102.0  # nats: the validation bound that the assignment asks for


def starter_epochs(images, valid, model, batch_size, clock):
    """Train as the starter does; after each epoch, its seconds and the validation bound."""
    torch.manual_seed(0)
    train = DataLoader(TensorDataset(images.float()), batch_size=batch_size, shuffle=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-4)
    while True:
        with torch.enable_grad():
            began = clock()
            for (x,) in train:
                optimizer.zero_grad()
                loss = model.loss(x, *model(x))
                loss.backward()
                optimizer.step()
            seconds = clock() - began
        with torch.no_grad():
            losses = [model.loss(x, *model(x)).item() * len(x) for x in valid.float().split(1000)]
        yield seconds, -sum(losses) / len(valid)


def ours(recipe, images, valid, epochs, clock, between=lambda: None):
    """Train with the book's loop; a list of seconds an epoch and one of validation bounds. `between` runs after each epoch, off the clock."""
    ends, begins = [], []

    def evaluate(model, epoch):
        ends.append(clock())
        log_likelihood, divergence = vae.elbo_terms_of_images(model, valid)
        return {"valid_elbo": (log_likelihood - divergence).mean().item()}

    def on_epoch(model, epoch):
        if epoch:
            between()
        begins.append(clock())

    result = training.fit(
        recipe.model(), recipe.objective(), images, epochs=epochs, batch_size=recipe.batch_size, lr=recipe.lr, optimizer=recipe.optimizer,
        weight_decay=recipe.weight_decay, schedule=recipe.schedule, ema=recipe.ema or None, seed=recipe.seed, precision=recipe.precision,
        device="cpu", evaluate=evaluate, on_epoch=on_epoch, progress=False,
    )  # fmt: skip
    return [end - begin for begin, end in zip(begins, ends[1:])], [
        row["valid_elbo"] for row in result.history[1:]
    ]


def first_at(bounds, target):
    """The first epoch, from 1, whose bound reaches the target; None where none does."""
    return next((epoch for epoch, bound in enumerate(bounds, 1) if bound >= target), None)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all epochs")
    parser.add_argument("--smoke", action="store_true", help="toy data, two epochs")
    parser.add_argument("--epochs", type=int, default=3, help="epochs of each where not --full")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count seconds of the processor: with --threads 1 fair on a busy machine",
    )
    parser.add_argument("--data-root", help="folder of the data sets")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu_time else time.perf_counter
    plain = common.recipe("vae-bmnist", options.smoke)
    fast = common.recipe("vae-bmnist-fast", options.smoke)
    images, valid = (
        common.load(plain.data, split, options.data_root) for split in ("train", "valid")
    )
    epochs = plain.epochs if options.full or options.smoke else options.epochs

    print(common.machine(), flush=True)
    rates = common.product_rates(256 if options.smoke else 2048, clock=clock)
    model = plain.model()
    # A multiply-add for each weight in the forward pass and two in the backward pass, but none towards the images.
    work = 6 * common.linear_parameters(model) - 2 * 784 * plain.hidden[0]

    measured = {}  # name -> (precision, seconds an epoch, bounds)
    starter_seconds, starter_bounds = [], []
    for name, recipe in (
        ("book, fp32", plain),
        ("book, bf16", dataclasses.replace(plain, precision="bf16")),
    ):
        starter = starter_epochs(
            images,
            valid,
            common.same_weights(common.StarterVAE(plain.latent), plain.model()),
            plain.batch_size,
            clock,
        )
        rows = []
        seconds, bounds = ours(
            recipe, images, valid, epochs, clock, between=lambda: rows.append(next(starter))
        )
        measured[name] = (recipe.precision, seconds, bounds)
        starter_seconds += [row[0] for row in rows]
        starter_bounds = starter_bounds or [row[1] for row in rows]
    starter_epoch = common.median(starter_seconds)
    print(f"\nBatch size {plain.batch_size}, {epochs} epochs of each, alternating; medians.")
    lines = [
        [
            "loop",
            "seconds an epoch",
            "times as fast",
            f"validation bound, epoch {epochs}",
            "GFLOP/s",
            "of matrix products",
        ]
    ]
    for name, (precision, seconds, bounds) in {
        "starter": ("fp32", starter_seconds, starter_bounds),
        **measured,
    }.items():
        epoch = common.median(seconds)
        rate = work * len(images) / epoch / 1e9
        lines.append(
            [
                name,
                f"{epoch:.2f}",
                f"{starter_epoch / epoch:.2f}",
                f"{bounds[-1]:.2f}",
                f"{rate:.0f}",
                f"{rate / rates[precision]:.0%} of {rates[precision]:.0f}",
            ]
        )
    common.table(lines)

    # The shortest way to the target.
    note = ""
    if options.full or options.smoke:
        seconds, bounds = ours(fast, images, valid, fast.epochs, clock)
        needed, fast_total = first_at(bounds, TARGET), sum(seconds)
        fast_total = sum(seconds[:needed]) if needed else fast_total
        fast_bound = bounds[(needed or 0) - 1]
        reached = first_at(starter_bounds, TARGET)
        starter_total = sum(starter_seconds[: reached or epochs])
        starter_bound = starter_bounds[(reached or 0) - 1]
    else:
        seconds, _ = ours(fast, images, valid, 1, clock)
        note = " (worked out from the seconds of an epoch and the bounds of the records)"
        records = {
            name: runs.Run.open(name).metrics["valid_elbo"][1:]
            for name in ("vae-bmnist", "vae-bmnist-fast")
            if runs.run_folder(name)
        }
        reached = first_at(records.get("vae-bmnist", []), TARGET) or plain.epochs
        needed = first_at(records.get("vae-bmnist-fast", []), TARGET) or fast.epochs
        starter_total, fast_total = reached * starter_epoch, needed * seconds[0]
        starter_bound = (
            records["vae-bmnist"][reached - 1] if "vae-bmnist" in records else float("nan")
        )
        fast_bound = (
            records["vae-bmnist-fast"][needed - 1] if "vae-bmnist-fast" in records else float("nan")
        )
    print(f"\nTo a validation bound of {TARGET:.0f}{note}.")
    common.table([
        ["loop", "epochs", "seconds", "times as fast", "bound there"],
        ["starter", reached or f"not in {epochs}", f"{starter_total:.1f}", "1.00", f"{starter_bound:.2f}"],
        ["vae-bmnist-fast", needed or f"not in {fast.epochs}", f"{fast_total:.1f}", f"{starter_total / fast_total:.2f}", f"{fast_bound:.2f}"],
    ])  # fmt: skip


if __name__ == "__main__":
    main()
