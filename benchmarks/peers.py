"""The book beside well-known libraries in one run: the same weights and inputs must give the same values, and times are taken by turns.

make peers                                     all comparisons, in an environment of their own
make peers ARGS="vae ddim"                     some of them
python benchmarks/peers.py --smoke             a few images of each, to see that values agree

It needs pythae, lightly, diffusers and denoising-diffusion-pytorch in the versions of peers.lock; the book needs none of them.
The exit status is 1 where a value is further from the book's than rounding explains.
"""

import argparse
import importlib
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import common
import torch

from genbook import runs
from genbook.data import import_torchvision
from genbook.machine import keep_freed_memory

COMPARISONS = {  # name -> the module that holds a function of that name
    "vae": "peers_vae",
    "likelihood": "peers_vae",
    "unet": "peers_diffusion",
    "ddim": "peers_diffusion",
    "views": "peers_selfsupervised",
    "simsiam": "peers_selfsupervised",
    "knn": "peers_selfsupervised",
}


@dataclass
class Found:
    """What a comparison found, as rows of tables: times the book's ways and the others', and values."""

    times: list[list[str]] = field(default_factory=list)
    values: list[list[str]] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)  # of ways
    differs: bool = False

    def value(self, what: str, theirs, ours, allowed: float, relative: bool = False) -> None:
        """Compare two values, or tensors number by number; `relative` to the largest of ours."""
        theirs, ours = (torch.as_tensor(some).detach().double() for some in (theirs, ours))
        gap = (theirs - ours).abs().max().item()
        gap = gap / ours.abs().max().item() if relative else gap
        agrees = gap <= allowed  # not where it is NaN
        self.differs |= not agrees
        self.values.append([what, f"{gap:.1e}", f"{allowed:.0e}", "yes" if agrees else "DIFFERS"])

    def time(self, what: str, ways: dict[str, Callable], options, alone: str = "") -> None:
        """Median milliseconds of each way, by turns after a round to warm up; the book's comes last.

        Where `alone` names a comparison, the memory of each way is that of a process of its own.
        """
        if options.cpu_time:  # it doesn't see what other processes do
            ways = {name: way for name, way in ways.items() if "processes" not in name}
        seconds = {name: [] for name in ways}
        for _ in range(options.rounds + 1):
            for name, way in ways.items():
                began = options.clock()
                way()
                seconds[name].append(options.clock() - began)
        took = {name: common.median(some[1:]) for name, some in seconds.items()}
        book = list(took.values())[-1]
        for name, median in took.items():
            peak = peak_of(alone, name, options) if alone and not options.smoke else ""
            note = ", ".join(filter(None, (self.notes.get(name), peak)))
            self.times.append([what, name, f"{1e3 * median:,.0f}", f"{median / book:.2f}", note])


def peak_of(what: str, way: str, options) -> str:
    """Peak memory of a process that takes one step in this way and does nothing else."""
    again = [sys.executable, __file__, what, "--memory-of", way]
    again += ["--threads", str(torch.get_num_threads())]
    if options.data_root:
        again += ["--data-root", options.data_root]
    done = subprocess.run(again, capture_output=True, text=True, check=True)
    return f"{float(done.stdout.splitlines()[-1]):.2f} GB"


def compare(name: str, options) -> Found:
    """Run a comparison by its name."""
    module = COMPARISONS[name]
    import_torchvision()  # theirs import it, and it imports only once it has been helped
    try:
        return getattr(importlib.import_module(module), name)(options, Found())
    except ModuleNotFoundError as error:
        sys.exit(f"{error}: `make peers` makes an environment that has it")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("comparisons", nargs="*", metavar="NAME", help=", ".join(COMPARISONS))
    parser.add_argument("--smoke", action="store_true", help="few images, small networks, once")
    parser.add_argument("--rounds", type=int, default=3, help="of each, by turns")
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="count seconds of the processor: with --threads 1 fair on a busy machine; without loaders' processes",
    )
    parser.add_argument("--data-root", help="folder of the data sets")
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.comparisons:
        if name not in COMPARISONS:
            parser.error(f"no comparison {name!r}; there are {', '.join(COMPARISONS)}")
    if options.threads:
        torch.set_num_threads(options.threads)
    if options.smoke:
        options.rounds = 1
    keep_freed_memory()
    options.clock = time.process_time if options.cpu_time else time.perf_counter
    if options.memory_of:
        compare(options.comparisons[0], options)
        print(common.peak_memory())
        return
    print(common.machine(), flush=True)
    times = [["comparison", "way", "ms", "times the book's", "note"]]
    values = [["the same weights and inputs", "largest difference", "allowed", "agrees"]]
    differs = False
    for name in options.comparisons or COMPARISONS:
        print(f"{name} ...", file=sys.stderr, flush=True)
        found = compare(name, options)
        times += found.times
        values += found.values
        differs |= found.differs
    print(f"\nMedians of {options.rounds}, by turns.")
    common.table(times)
    print()
    common.table(values)
    if differs:
        sys.exit("Values differ by more than rounding explains.")


def recorded(family, name: str, recipe, smoke: bool):
    """The recorded model of a run, where there is one and it isn't a rehearsal."""
    if not smoke and runs.run_folder(name):
        return family.build(runs.Run.open(name))[1].eval()
    return recipe.model().eval()


if __name__ == "__main__":
    sys.modules["peers"] = sys.modules["__main__"]  # what the comparisons import
    main()
