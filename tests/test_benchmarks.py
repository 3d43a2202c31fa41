"""The benchmarks run, on toy data and for seconds; what they measure is not looked at."""

import importlib
import runpy
import sys

import pytest
import torch


@pytest.fixture
def benchmark_script(root, monkeypatch):
    """Run a script of benchmarks/ as a command, but in this process, where torch is loaded already."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    threads = torch.get_num_threads()

    def run(script, *arguments):
        monkeypatch.setattr("sys.argv", [f"{script}.py", *arguments])
        runpy.run_path(str(root / "benchmarks" / f"{script}.py"), run_name="__main__")

    yield run
    torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("vae_training", ("starter", "book, fp32", "book, bf16", "vae-bmnist-fast")),
        ("log_likelihood", ("starter", "book, fp32", "book, bf16")),
        ("gaussian_vae", ("plain, fp32", "book, bf16, channels last")),
        ("critic_step", ("plain, fp32", "book, fp32", "book, bf16, channels last")),
        ("ddpm_step", ("plain, fp32", "book, fp32", "book, bf16, channels last")),
        ("views", ("torchvision, in the loop", "book")),
        ("threads", ("1 busy",)),
        ("evaluation", ("features of 500 images", "spectrum, 256 outputs", "all,")),
        ("judges", ("Fréchet, 64 features", "kernel, interval of 20 halves")),
        ("card", ("vae-svhn", "simsiam-cifar10", "all             | one GPU | not measured")),
    ],
)
def test_benchmark_runs_on_toy_data(benchmark_script, capsys, script, rows, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    benchmark_script(script, "--smoke", "--threads", "1")
    printed = capsys.readouterr().out
    for row in rows:
        assert f"\n| {row} " in printed
    assert ("times as fast" in printed or script == "card") and "nan" not in printed


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("vae_training", "binarized_mnist"),
        ("log_likelihood", "binarized_mnist"),
        ("gaussian_vae", "svhn"),
        ("critic_step", "svhn"),
        ("ddpm_step", "svhn"),
        ("views", "cifar10"),
        ("evaluation", "cifar10"),
    ],
)
def test_missing_data_is_told(benchmark_script, monkeypatch, script, name, tmp_path):
    monkeypatch.delenv("GENBOOK_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit) as stopped:
        benchmark_script(script)
    # A message is printed to stderr by Python, and the exit status is 1.
    assert f"genbook data fetch {name}" in stopped.value.code
    assert "--smoke" in stopped.value.code


@pytest.fixture
def peers(root, monkeypatch):
    """The comparison with other libraries, which are not installed here: of them only their names are known."""
    monkeypatch.syspath_prepend(root / "benchmarks")
    module = importlib.import_module("peers")
    yield module
    for name in ("peers", "common"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize(
    ("theirs", "agrees"),
    [(1.0, True), (1.0005, True), (1.002, False), (float("nan"), False)],
)
def test_make_peers_fails_where_values_disagree(peers, monkeypatch, capsys, theirs, agrees):
    def compared(name, options):
        found = peers.Found()
        found.value(name, torch.tensor([2.0, theirs]), torch.tensor([2.0, 1.0]), 1e-3)
        return found

    monkeypatch.setattr(peers, "compare", compared)
    monkeypatch.setattr("sys.argv", ["peers.py", "vae", "ddim"])
    if agrees:
        peers.main()
    else:
        with pytest.raises(SystemExit, match="Values differ"):
            peers.main()
    printed = capsys.readouterr().out
    assert printed.count("DIFFERS") == (0 if agrees else 2)


def test_a_library_that_is_missing_is_told(peers, monkeypatch):
    monkeypatch.setattr("sys.argv", ["peers.py", "vae", "--smoke"])
    monkeypatch.setitem(sys.modules, "peers_vae", None)
    with pytest.raises(SystemExit, match="make peers"):
        peers.main()
