"""Votes and monitor beyond what their chapter shows: memory, extremes."""

import os
import subprocess
import sys

import pytest
import torch

from genbook.selfsupervised.representations import (
    effective_rank,
    knn_votes,
    spectrum,
    spread,
    uniformity,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


MEMORY = """
import re, sys, torch
from genbook.selfsupervised.representations import knn_votes


def peak():  # of this process; ru_maxrss would begin at that of the process that started it
    return int(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])


torch.manual_seed(0)
torch.set_num_threads(1)
n, m, features, memory = (int(given) for given in sys.argv[1:])
bank, labels, queries = torch.randn(n, features), torch.randint(0, 10, (n,)), torch.randn(m, features)
knn_votes(bank[:500], labels[:500], queries[:5])
before = peak()
votes = knn_votes(bank, labels, queries, memory=memory)
assert votes.shape == (m, 10) and votes.isfinite().all()
print(before, peak())
"""


def memory_of(n, m, features, memory):
    """Peaks of a process before and after the votes, in MB."""
    arguments = [str(given) for given in (n, m, features, memory)]
    # Not what the allocator keeps of what was freed, as the Makefile tells it to.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        env=plain,
    )
    assert done.returncode == 0, done.stderr
    return [int(kilobytes) / 1024 for kilobytes in done.stdout.split()]


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /proc")


@linux
@pytest.mark.parametrize("queries", [300, 1200])
def test_memory_is_that_of_the_table_asked_for(queries):
    """A table of 32 MB and copies of its size, whatever the number of queries; all at once would take 60 and 240 MB."""
    before, peak = memory_of(50_000, queries, 8, 32 * 2**20)
    assert peak - before < 150


@linux
def test_memory_of_all_of_cifar10():
    """Its 50,000 training images by default, for as many queries as are three parts of the table of similarities.

    A full table for the 10,000 test images would take 2 GB; more queries add parts, and no memory but their own.
    """
    before, peak = memory_of(50_000, 3 * 1342, 16, 256 * 2**20)
    assert peak < 2000 and peak - before < 700


def test_one_query_at_a_time_where_memory_has_no_room():
    bank, labels, queries = torch.randn(40, 3), torch.randint(0, 10, (40,)), torch.randn(7, 3)
    everything = knn_votes(bank, labels, queries, 5)
    torch.testing.assert_close(knn_votes(bank, labels, queries, 5, memory=0), everything)


def test_votes_sum_to_one_and_no_class_is_left_out():
    bank, labels, queries = torch.randn(60, 3), torch.randint(0, 3, (60,)), torch.randn(9, 3)
    votes = knn_votes(bank, labels, queries, 60)
    torch.testing.assert_close(votes.sum(1), torch.ones(9))
    assert votes.shape == (9, 10) and (votes[:, :3] > 0).all() and (votes[:, 3:] == 0).all()


def test_an_image_of_the_bank_is_its_own_neighbour():
    bank, labels = torch.randn(50, 6), torch.randint(0, 10, (50,))
    assert torch.equal(knn_votes(bank, labels, bank, 1).argmax(1), labels)


@pytest.mark.parametrize("value", [0.0, 1e-12, 3.0])
def test_monitor_of_a_collapsed_network(value):
    z = torch.full((40, 6), value)
    assert spread(z) < 1e-6 and spectrum(z).sum() < 1e-12 and uniformity(z).isfinite()
    assert effective_rank(spectrum(z)).isfinite()
