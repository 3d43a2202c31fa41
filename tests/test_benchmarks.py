"""The benchmarks run, on toy data and for seconds; what they measure is not looked at."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("script", "rows"),
    [
        ("vae_training", ("starter", "book, fp32", "book, bf16", "vae-bmnist-fast")),
        ("log_likelihood", ("starter", "book, fp32", "book, bf16")),
        ("gaussian_vae", ("plain, fp32", "book, bf16, channels last")),
        ("critic_step", ("plain, fp32", "book, fp32", "book, bf16, channels last")),
        ("ddpm_step", ("plain, fp32", "book, fp32", "book, bf16, channels last")),
        ("views", ("torchvision, in the loop", "book")),
    ],
)
def test_benchmark_runs_on_toy_data(root, script, rows):
    found = subprocess.run(
        [sys.executable, root / "benchmarks" / f"{script}.py", "--smoke", "--threads", "1"],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.returncode == 0, found.stderr
    for row in rows:
        assert f"\n| {row} " in found.stdout
    assert "times as fast" in found.stdout and "nan" not in found.stdout


@pytest.mark.parametrize(
    ("script", "name"),
    [
        ("vae_training", "binarized_mnist"),
        ("log_likelihood", "binarized_mnist"),
        ("gaussian_vae", "svhn"),
        ("critic_step", "svhn"),
        ("ddpm_step", "svhn"),
        ("views", "cifar10"),
    ],
)
def test_missing_data_is_told(root, script, name, tmp_path):
    environment = {key: value for key, value in os.environ.items() if key != "GENBOOK_DATA"} | {
        "XDG_CACHE_HOME": str(tmp_path)
    }
    found = subprocess.run(
        [sys.executable, root / "benchmarks" / f"{script}.py"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert found.returncode == 1
    assert (
        f"genbook data fetch {name}" in found.stderr
        and "--smoke" in found.stderr
        and "Traceback" not in found.stderr
    )
