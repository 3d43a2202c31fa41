"""Seconds and memory of log p(x) by importance sampling, K = 200: the book's function against the course's, in one run.

python benchmarks/log_likelihood.py            the first 1,280 test images
python benchmarks/log_likelihood.py --full     all 10,000
python benchmarks/log_likelihood.py --smoke    toy data, to see that it runs
"""

import argparse
import subprocess
import sys
import time

import common
import torch

from genbook import runs
from genbook.descent import in_precision
from genbook.machine import keep_freed_memory
from genbook.vae import binarised_mnist as vae
from genbook.vae import importance

BLOCK = 640  # images that one contestant evaluates before it is the next one's turn


def starter(model, images, num_samples):
    """The evaluation of report 002 (2020), Figure 2: batches of 64, all of their draws decoded at once."""
    estimates = []
    with torch.no_grad():
        for x in images.float().split(64):
            m, k = x.size(0), num_samples
            mean, logvar = model.encode(x)
            eps = torch.randn(m, k, mean.size(1))
            z = mean[:, None, :] + torch.exp(logvar / 2.0)[:, None, :] * eps
            z_flat = z.view(-1, z.size(-1))
            decoded = model.decode(z_flat)
            x_flat = x[:, None].repeat(1, k, 1, 1, 1).reshape(m * k, -1)
            mean_flat = mean[:, None, :].expand_as(z).reshape(m * k, -1)
            logvar_flat = logvar[:, None, :].expand_as(z).reshape(m * k, -1)
            zeros = torch.zeros(mean_flat.size())
            log_p_x_z = common.starter_log_likelihood_bernoulli(
                torch.sigmoid(decoded), x_flat
            ).view(m, k)
            log_q_z_x = common.starter_log_likelihood_normal(mean_flat, logvar_flat, z_flat).view(
                m, k
            )
            log_p_z = common.starter_log_likelihood_normal(zeros, zeros, z_flat).view(m, k)
            w = log_p_x_z + log_p_z - log_q_z_x
            a = w.max(dim=1).values
            estimates.append(torch.log(torch.mean(torch.exp(w - a[:, None]), dim=1)) + a)
    return torch.cat(estimates)


def book_bf16(model, images, num_samples):
    """Ours with matrix products in bfloat16, where the processor has it."""
    with in_precision("bf16"):
        return importance.importance_log_likelihood(model, images, num_samples)


CONTESTANTS = {
    "starter": starter,
    "book, fp32": importance.importance_log_likelihood,
    "book, bf16": book_bf16,
}


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="all test images")
    parser.add_argument("--smoke", action="store_true", help="toy data, an untrained model, K = 20")
    parser.add_argument("--images", type=int, default=2 * BLOCK, help="how many where not --full")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count seconds of the processor: with --threads 1 fair on a busy machine",
    )
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--memory-of", choices=CONTESTANTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()  # as the command line does
    clock = time.process_time if options.cpu_time else time.perf_counter
    recipe = common.recipe("vae-bmnist", options.smoke)
    images = common.load(recipe.data, "test", options.data_root)
    images = images[:200] if options.smoke else images if options.full else images[: options.images]
    num_samples = recipe.eval_samples
    recorded = not options.smoke and runs.run_folder("vae-bmnist") is not None
    model = vae.build(runs.Run.open("vae-bmnist"))[1] if recorded else recipe.model().eval()
    models = dict.fromkeys(CONTESTANTS, model)
    models["starter"] = common.same_weights(common.StarterVAE(recipe.latent), model)

    if options.memory_of:  # a process of its own: the peak of one contestant
        torch.manual_seed(0)
        CONTESTANTS[options.memory_of](models[options.memory_of], images[:BLOCK], num_samples)
        print(common.peak_memory())
        return

    print(common.machine(), flush=True)
    rates = common.product_rates(256 if options.smoke else 2048, clock=clock)
    seconds = dict.fromkeys(CONTESTANTS, 0.0)
    estimates = {name: [] for name in CONTESTANTS}
    for name, evaluate in CONTESTANTS.items():
        evaluate(models[name], images[:64], num_samples)  # to warm up
    for number, block in enumerate(images.split(BLOCK)):
        for offset, (name, evaluate) in enumerate(CONTESTANTS.items()):
            torch.manual_seed(3 * number + offset)  # draws of its own
            began = clock()
            estimates[name].append(evaluate(models[name], block, num_samples))
            seconds[name] += clock() - began
    peaks = {}
    for name in CONTESTANTS:
        again = [
            sys.executable,
            __file__,
            *[argument for argument in sys.argv[1:] if argument != "--full"],
            "--memory-of",
            name,
        ]
        peaks[name] = float(
            subprocess.run(again, capture_output=True, text=True, check=True).stdout
        )

    work = 2 * num_samples * common.linear_parameters(model.decoder) + 2 * common.linear_parameters(
        model.encoder
    )
    print(
        f"\n{len(images):,} images, K = {num_samples}, alternating in blocks of {BLOCK}; {'the recorded' if recorded else 'an untrained'} model."
    )
    lines = [
        [
            "function",
            "seconds",
            "times as fast",
            "log p(x)",
            "less the starter's",
            "peak GB",
            "GFLOP/s",
            "of matrix products",
        ]
    ]
    reference = torch.cat(estimates["starter"])
    for name in CONTESTANTS:
        values = torch.cat(estimates[name])
        difference = values - reference
        error = difference.std().item() / len(values) ** 0.5
        rate = work * len(images) / seconds[name] / 1e9
        of = rates["bf16" if "bf16" in name else "fp32"]
        lines.append([
            name, f"{seconds[name]:.1f}", f"{seconds['starter'] / seconds[name]:.2f}", f"{values.mean():.3f}",
            "" if name == "starter" else f"{difference.mean():+.3f} ± {error:.3f}", f"{peaks[name]:.2f}", f"{rate:.0f}", f"{rate / of:.0%} of {of:.0f}",
        ])  # fmt: skip
    common.table(lines)


if __name__ == "__main__":
    main()
