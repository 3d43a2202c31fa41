"""Distances of features and their intervals, by the formulas as they stand and by the book, in one run, with the values of both.

python benchmarks/judges.py            2,000 samples of 64 and of 512 features, intervals from 200 halves
python benchmarks/judges.py --smoke    few samples, to see that it runs
"""

import argparse
import time

import common
import torch

from genbook.judges.quality import frechet_distance, kernel_distance, kernel_interval
from genbook.machine import keep_freed_memory
from genbook.measures import bootstrap


def frechet_formula(x, y):
    """Means, covariances, and the root of the eigenvalues of their product."""
    x, y = x.double(), y.double()
    cov_x, cov_y = x.T.cov(), y.T.cov()
    roots = torch.linalg.eigvals(cov_x @ cov_y).sqrt().real.sum()
    apart = (x.mean(0) - y.mean(0)).square().sum()
    return (apart + cov_x.trace() + cov_y.trace() - 2 * roots).item()


def frechet_by_qr(x, y):
    """Roots of the covariances by QR, as the book had it before."""
    x, y = (some.double() for some in (x, y))
    if not (x.isfinite().all() and y.isfinite().all()):
        raise ValueError
    roots = [
        torch.linalg.qr((some - some.mean(0)) / (len(some) - 1) ** 0.5, mode="r").R
        for some in (x, y)
    ]
    spread = sum(root.square().sum() for root in roots)
    spread = spread - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    return ((x.mean(0) - y.mean(0)).square().sum() + spread).item()


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="60 samples, 20 halves, once")
    parser.add_argument("--rounds", type=int, default=20, help="of each distance, by turns")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--cpu-time", action="store_true", help="count seconds of the processor")
    options = parser.parse_args()
    clock = time.process_time if options.cpu_time else time.perf_counter
    if options.threads:
        torch.set_num_threads(options.threads)
    keep_freed_memory()
    print(common.machine(), flush=True)
    n, halves, rounds = (60, 20, 1) if options.smoke else (2000, 200, options.rounds)
    torch.manual_seed(0)
    few, many = (
        [torch.randn(n, d) @ torch.randn(d, d) / d**0.5 + 0.1 * i for i in range(2)]
        for d in (64, 512)
    )
    tasks = {
        "Fréchet, 64 features": ((frechet_formula, frechet_by_qr, frechet_distance), few, rounds),
        "Fréchet, 512 features": ((frechet_formula, frechet_by_qr, frechet_distance), many, 3),
        f"kernel, interval of {halves} halves": (
            (
                lambda x, y: bootstrap(kernel_distance, x, y, resamples=halves)[1],
                lambda x, y: kernel_interval(x, y, halves)[1],
            ),
            few,
            1 if options.smoke else 3,
        ),
    }
    lines = [["distance", "way", "ms", "times as fast", "value"]]
    for name, (ways, pair, times) in tasks.items():
        seconds = [[] for _ in ways]
        values = [0.0 for _ in ways]
        for _ in range(times + 1):
            for i, way in enumerate(ways):
                began = clock()
                values[i] = way(*pair)
                seconds[i].append(clock() - began)
        first = common.median(seconds[0][1:])
        called = ("formula", "before", "book")[-len(ways) :]
        for way, took, value in zip(called, seconds, values, strict=True):
            took = common.median(took[1:])
            lines.append([name, way, f"{1e3 * took:.2f}", f"{first / took:.2f}", f"{value:.10f}"])
    common.table(lines)


if __name__ == "__main__":
    main()
