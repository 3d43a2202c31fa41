"""A step of the VAE on a machine that is quiet and on one that is busy, by how many threads take it and how they wait, in one run.

python benchmarks/threads.py            300 steps of each, three times by turns, alone and beside as many busy processes as there are cores
python benchmarks/threads.py --smoke    a few steps of each, to see that it runs
"""

import argparse
import os
import subprocess
import sys
import time

import common

from genbook import machine

WAYS = {  # threads, what the environment says of them, whether genbook chooses
    "all, spinning": (True, {}, False),
    "all, asleep": (True, {"OMP_WAIT_POLICY": "PASSIVE"}, False),
    "one": (False, {}, False),
    "genbook's choice": (True, {}, True),
}
STEPS = """
import sys, time
from genbook import machine
if sys.argv[2] == "True":
    machine.settle()
import torch
from genbook.vae import binarised_mnist as vae
recipe = vae.RECIPES["vae-bmnist"]
model, objective = recipe.model(), recipe.objective()
adam = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
batch = torch.rand(recipe.batch_size, 1, 28, 28).round()
seconds = []
for _ in range(int(sys.argv[1])):
    began = time.perf_counter()
    loss, _ = objective(model, batch)
    adam.zero_grad()
    loss.backward()
    adam.step()
    seconds.append(time.perf_counter() - began)
print(torch.get_num_threads(), *seconds[len(seconds) // 10 :])
"""
BUSY = "while True: sum(range(100_000))"


def steps_of(way, steps):
    """Threads and seconds of steps in a process of their own; to choose threads is not on the clock."""
    every, environment, chooses = WAYS[way]
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_", "MALLOC_"))}
    if not chooses:
        clean["OMP_NUM_THREADS"] = str(machine.cores() if every else 1)
    command = [sys.executable, "-c", STEPS, str(steps), str(chooses)]
    done = subprocess.run(
        command, env=clean | environment, capture_output=True, text=True, check=True
    )
    threads, *seconds = done.stdout.split()
    return int(threads), [float(value) for value in seconds]


def by_turns(ways, steps, rounds):
    """Of each way its numbers of threads, and seconds of all its steps."""
    found = {way: (set(), []) for way in ways}
    for _ in range(rounds):
        for way, (threads, seconds) in found.items():
            number, took = steps_of(way, steps)
            threads.add(number)
            seconds += took
    return found


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--smoke", action="store_true", help="10 steps of two ways, once, beside one process"
    )
    parser.add_argument("--steps", type=int, default=300, help="steps of each process")
    parser.add_argument("--rounds", type=int, default=3, help="processes of each way, by turns")
    parser.add_argument("--beside", type=int, default=machine.cores(), help="busy processes")
    parser.add_argument("--threads", type=int, help="of no meaning here: the threads vary")
    options = parser.parse_args()
    steps, rounds = (10, 1) if options.smoke else (options.steps, options.rounds)
    ways, company = list(WAYS), (0, options.beside)
    if options.smoke:
        ways, company = [ways[0], ways[-1]], (1,)
    print(common.machine(), flush=True)
    free = machine.free_cores(1.0)
    print(f"others leave {free:.1f} of {machine.cores()} cores")
    lines = [["beside", "threads", "number", "ms, median", "ms, mean", "times as fast"]]
    for beside in dict.fromkeys(company):
        others = [subprocess.Popen([sys.executable, "-c", BUSY]) for _ in range(beside)]
        try:
            time.sleep(0.5)
            found = by_turns(ways, steps, rounds)
        finally:
            for other in others:
                other.kill()
                other.wait()
        first = None
        for way, (threads, seconds) in found.items():
            mean = sum(seconds) / len(seconds)
            first = first or mean
            number = " or ".join(map(str, sorted(threads)))
            told = (
                f"{common.median(seconds) * 1e3:.1f}",
                f"{mean * 1e3:.1f}",
                f"{first / mean:.2f}",
            )
            lines.append([f"{beside} busy" if beside else "nobody", way, number, *told])
    print(f"\n{steps} steps in each process, {rounds} of each by turns.")
    common.table(lines)


if __name__ == "__main__":
    main()
