"""The search for each method's rate: what is refused, what a kill leaves, what may never be chosen or looked at."""

import dataclasses
import signal
import subprocess
import sys

import pytest
import torch

from genbook import training
from genbook.checkpoints import load_checkpoint
from genbook.data import Splits
from genbook.families import Job
from genbook.runs import Place, load_weights
from genbook.selfsupervised import rates
from genbook.selfsupervised.rates import RECIPES, next_rate, shares_of

TINY = dataclasses.replace(
    RECIPES["relatives-cifar10-rates"].smoke(),
    name="tiny",
    methods=("simclr", "vicreg"),
    learned=64,
    known=40,
    asked=40,
)
KILLED = """
import os, signal, sys
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from genbook.families import Job
from genbook.selfsupervised import rates
from test_rates import TINY

once, calls = rates.try_rate, []

def killed(*given):
    calls.append(given)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return once(*given)

rates.try_rate = killed
rates.train(TINY, Job({out!r}, device="cpu", progress=False))
"""


def quiet(folder):
    """A job on the CPU that says nothing."""
    return Job(folder, device="cpu", progress=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A search that nothing disturbed."""
    return rates.train(TINY, quiet(tmp_path_factory.mktemp("whole") / "tiny"))


def test_a_killed_search_ends_with_the_same_table(whole, tmp_path, monkeypatch, root):
    """SIGKILL in the third run of four; the first two are not made again."""
    out = tmp_path / "tiny"
    script = KILLED.format(tests=str(root / "tests"), out=str(out))
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert Place(out).scratch.joinpath("checkpoint.pt").exists() and not out.exists()
    made, once = [], rates.try_rate
    monkeypatch.setattr(rates, "try_rate", lambda *given: made.append(given[1:3]) or once(*given))
    run = rates.train(TINY, quiet(out))
    assert made == [("vicreg", rate) for rate in TINY.rates]
    assert run.record["metrics"] == whole.record["metrics"]
    before, after = (load_weights(each.weights) for each in (whole, run))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.path.iterdir()}
    assert not Place(out).scratch.exists()


def test_a_record_tells_the_whole_table(whole):
    metrics = whole.record["metrics"]
    for method in TINY.methods:
        cells = {rate: metrics[f"{method}_{rate:g}_knn"] for rate in TINY.rates}
        best = max(cells, key=lambda rate: cells[rate]["value"])
        assert metrics[f"{method}_rate"]["value"] == best
        for cell in cells.values():
            p = cell["value"]
            assert cell["split"] == "valid" and cell["n"] == 40
            assert cell["se"] == pytest.approx((p * (1 - p) / 40) ** 0.5)
        assert metrics[f"{method}_norm"]["value"] > 0
    assert rates.evaluate(whole) == metrics
    with pytest.raises(ValueError, match="draws no images"):
        rates.sample(whole, 1)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="methods must be one of .*; did you mean 'simsiam'"):
        dataclasses.replace(TINY, methods=("simsaim",))
    with pytest.raises(ValueError, match="no method is called 'simsaim'; did you mean 'simsiam'"):
        TINY.trial("simsaim", 0.1)


def test_a_search_goes_on_only_as_it_began(tmp_path, monkeypatch):
    def stop(*given):
        raise KeyboardInterrupt

    monkeypatch.setattr(rates, "try_rate", stop)
    with pytest.raises(KeyboardInterrupt):
        rates.train(TINY, quiet(tmp_path / "tiny"))
    with pytest.raises(ValueError, match="asked"):
        rates.train(dataclasses.replace(TINY, asked=30), quiet(tmp_path / "tiny"))


def test_a_rate_at_which_a_loss_is_no_number_is_never_chosen(tmp_path, monkeypatch):
    fit = training.fit

    def broken(*given, lr, **more):
        if lr > 0.05:
            raise FloatingPointError("the loss is nan")
        return fit(*given, lr=lr, **more)

    monkeypatch.setattr(training, "fit", broken)
    recipe = dataclasses.replace(TINY, methods=("simclr",))
    run = rates.train(recipe, quiet(tmp_path / "tiny"))
    assert run.figure("simclr_0.48_knn") == 0 < run.figure("simclr_0.12_knn")
    assert run.figure("simclr_rate") == 0.12
    assert load_weights(run.weights)["simclr@0.48.loss"].isnan()


def test_ctrl_c_within_a_run_is_no_answer(tmp_path, monkeypatch):
    stopped = training.FitResult([], torch.nn.Linear(1, 1), 0.0, completed=False)
    monkeypatch.setattr(training, "fit", lambda *given, **more: stopped)
    with pytest.raises(KeyboardInterrupt):
        rates.train(TINY, quiet(tmp_path / "tiny"))
    kept = load_checkpoint(Place(tmp_path / "tiny").scratch / "checkpoint.pt")["tensors"]
    assert "start-vicreg.norms" in kept and not shares_of(kept, "simclr")


def test_a_run_goes_on_within(tmp_path, monkeypatch):
    """Killed after the first of two epochs, it takes the second alone, and answers alike."""
    recipe = dataclasses.replace(TINY, methods=("simclr",), rates=(0.12, 0.48), epochs=2)
    whole = rates.train(recipe, quiet(tmp_path / "whole" / "tiny"))
    fit, trial, steps = training.fit, type(recipe.trial("simclr", 0.12)), []
    objective_of = trial.objective

    def counted(self):
        of = objective_of(self)

        def step(model, images):
            steps.append(self.name)
            if steps == ["simclr-0.12"] * 3:  # the first for the gradient's norm at the start
                raise RuntimeError("killed")
            return of(model, images)

        return step

    with monkeypatch.context() as patch:
        patch.setattr(training, "fit", lambda *a, **k: fit(*a, **k | {"checkpoint_seconds": 0}))
        patch.setattr(trial, "objective", counted)
        with pytest.raises(RuntimeError, match="killed"):
            rates.train(recipe, quiet(tmp_path / "parts" / "tiny"))
        assert (Place(tmp_path / "parts" / "tiny").scratch / "trial.pt").exists()
        run = rates.train(recipe, quiet(tmp_path / "parts" / "tiny"))
    assert steps == ["simclr-0.12"] * 4 + ["simclr-0.48"] * 2
    assert run.record["metrics"] == whole.record["metrics"]


def test_no_test_image_is_looked_at(tmp_path, monkeypatch):
    opened, whole = [], Splits.__getitem__
    monkeypatch.setattr(
        Splits, "__getitem__", lambda self, name: opened.append(name) or whole(self, name)
    )
    recipe = dataclasses.replace(TINY, methods=("simclr",))
    rates.FAMILY.make(recipe, quiet(tmp_path / "tiny"), Splits(recipe.data, None))
    assert set(opened) == {"train", "valid"}


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (0.12, [0.03, 0.12, 0.48, 1.92]),
        (0.03, [0.03, 0.12, 0.48, 1.92, 0.0075]),
        (0.002, [0.03, 0.12, 0.48, 1.92, 0.0075, 0.001875, 0.0004687]),
        (7.68, [0.03, 0.12, 0.48, 1.92, 7.68, 30.72]),
        (1e9, [0.03, 0.12, 0.48, 1.92, 7.68, 30.72, 122.9]),
    ],
)
def test_the_grid_goes_on_where_the_best_lies_at_its_end(best, tried):
    """By the same ratio, and by three more rates at most."""
    recipe, shares = RECIPES["relatives-cifar10-rates"], {}
    while (rate := next_rate(recipe, shares)) is not None:
        shares[rate] = -abs(torch.tensor(rate / best).log().item())
    assert list(shares) == pytest.approx(tried)


def test_methods_share_seed_views_and_images():
    recipe = RECIPES["relatives-cifar10-rates"]
    trials = [recipe.trial(method, 0.5) for method in recipe.methods]
    for name in ("data", "epochs", "batch_size", "weight_decay", "seed", "precision", "k"):
        assert len({getattr(trial, name) for trial in trials}) == 1, name
    assert {trial.lr for trial in trials} == {0.5}
