"""What SimSiam is looked at for after each epoch, as it was computed before and as it is, in one run, with the values of both.

python benchmarks/evaluation.py                    2,000 training images in the bank, 3 times by turns; the real bank has 40,000
python benchmarks/evaluation.py --bank 40000       the whole bank
python benchmarks/evaluation.py --smoke            toy data and a small projector, to see that it runs
"""

import argparse
import time

import common
import torch
from torch import nn

from genbook.machine import keep_freed_memory
from genbook.randomness import own_randomness
from genbook.selfsupervised import pretraining, representations, simsiam
from genbook.selfsupervised.views import Augmentation, normalise, plain_view


def outputs_before(model, images, view=plain_view):
    """Features and projections of all images alike, 250 at a time."""
    kept, projections = [], []
    hook = model.encoder.fc.register_forward_pre_hook(
        lambda module, inputs: kept.append(inputs[0].float().cpu())
    )
    for some in images.split(250):
        x = view(some).contiguous(memory_format=torch.channels_last)
        projections.append(model.encoder(x).float().cpu())
    hook.remove()
    return torch.cat(kept), torch.cat(projections)


def views_before(model, images, seed=0):
    with own_randomness(seed):
        return [
            outputs_before(model, images, lambda x: normalise(Augmentation()(x)))[1]
            for _ in range(2)
        ]


def spectrum_before(z):
    """By the covariance, whatever the number of images."""
    z = nn.functional.normalize(z.double(), dim=1)
    z = z - z.mean(0)
    return torch.linalg.eigvalsh(z.T @ z / len(z)).flip(0).clamp(min=0).to(torch.float32)


def parts(recipe, model, bank, labels, some):
    """Of each part of the look how it was computed, and how it is."""
    z = nn.functional.normalize(torch.randn(len(some), recipe.dim), dim=1)
    wide = nn.functional.normalize(torch.randn(len(some), 2 * recipe.dim), dim=1)
    features, queries = (pretraining.features_of(model, images) for images in (bank, some))
    votes = representations.knn_votes
    return {
        f"features of {len(bank):,} images": (
            lambda: outputs_before(model, bank)[0],
            lambda: pretraining.features_of(model, bank),
        ),
        f"views of {len(some):,} images": (
            lambda: torch.stack(views_before(model, some)),
            lambda: torch.stack(pretraining.views_of(model, some, Augmentation())),
        ),
        f"spectrum, {recipe.dim:,} outputs": (
            lambda: spectrum_before(z),
            lambda: representations.spectrum(z),
        ),
        f"spectrum, {2 * recipe.dim:,} outputs": (
            lambda: spectrum_before(wide),
            lambda: representations.spectrum(wide),
        ),
        f"neighbours of {len(some):,} images": (
            lambda: votes(features, labels, queries, recipe.k, recipe.temperature),
            lambda: votes(features, labels, queries, recipe.k, recipe.temperature),
        ),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="toy data, 128 outputs, once")
    parser.add_argument("--bank", type=int, default=2000, help="training images")
    parser.add_argument("--rounds", type=int, default=3, help="of each, by turns")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor")
    parser.add_argument("--data-root", help="folder of the data sets")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(common.machine(), flush=True)
    recipe = simsiam.RECIPES["simsiam-cifar10"]
    recipe = recipe.smoke() if options.smoke else recipe
    everything = common.load(recipe.data, "train", options.data_root)
    bank = everything[: 500 if options.smoke else options.bank]
    some = common.load(recipe.data, "valid", options.data_root)[: recipe.monitored]
    labels = torch.randint(10, (len(bank),))
    model = recipe.model().to(memory_format=torch.channels_last).eval()
    lines = [["part", "before, s", "now, s", "times as fast", "largest difference"]]
    whole = [0.0, 0.0]  # of a look after an epoch: the features of all of the bank, the rest once
    with torch.no_grad():
        for name, ways in parts(recipe, model, bank, labels, some).items():
            seconds, found = ([], []), [None, None]
            for _ in range(1 if options.smoke else options.rounds):
                for i, way in enumerate(ways):
                    began = clock()
                    found[i] = way()
                    seconds[i].append(clock() - began)
            before, now = map(common.median, seconds)
            off = (found[0] - found[1]).abs().max().item()
            lines.append([name, f"{before:.2f}", f"{now:.2f}", f"{before / now:.2f}", f"{off:.1e}"])
            if f"{2 * recipe.dim:,} outputs" not in name:
                times = len(everything) / len(bank) if name.startswith("features") else 1
                whole = [so_far + times * took for so_far, took in zip(whole, (before, now))]
    name = f"all, {len(everything):,} in the bank"
    lines.append([name, *(f"{took:.1f}" for took in whole), f"{whole[0] / whole[1]:.2f}", ""])
    common.table(lines)


if __name__ == "__main__":
    main()
