"""A compiled step is the same step: for recipes of the book, in a process where shapes in signatures are not executed, since no graph can do that."""

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from genbook import graphs
from genbook.families import Job
from genbook.training import fit

CODE = """
import sys
import torch
from genbook import data, families
from genbook.training import fit

name = sys.argv[1]
recipe = families.all_recipes()[name][1].smoke()
images = data.load(recipe.data, "train").images[:96]
settings = {key: getattr(recipe, key) for key in families.FROM_RECIPE if hasattr(recipe, key)}
settings |= {"epochs": 2, "batch_size": 32, "lr": 1e-3, "ema": None, "device": "cpu", "progress": False}
curves = []
for how in (False, "aot_eager"):
    found = fit(recipe.model(), recipe.objective(), images, **settings, compile=how)
    losses = [value for row in found.history for key, value in row.items() if "loss" in key]
    curves.append(torch.tensor(losses))
torch.testing.assert_close(*curves, rtol=1e-5, atol=1e-6)
print(found.compiled, curves[0][:2].tolist())
"""


def curves_of(name):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment.pop("GENBOOK_TYPECHECK", None)
    done = subprocess.run(
        [sys.executable, "-c", CODE, name],
        capture_output=True, text=True, timeout=500, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1], done.stderr


@pytest.mark.parametrize("name", ["vae-svhn", "ddpm-svhn", "simsiam-cifar10", "byol-cifar10"])
def test_a_compiled_run_has_the_same_losses(name):
    out, err = curves_of(name)
    assert out.startswith("True") and "step by step" not in err


def test_what_cannot_be_compiled_trains_as_it_is():
    """The penalty of the Wasserstein game differentiates a gradient; its generator is compiled all the same."""
    out, err = curves_of("wgan-svhn")
    assert out.startswith("False")
    assert err.count("step by step") == 1 and "critic trains step by step" in err


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))


def noisy(model, x):
    loss = (model(x + torch.randn_like(x)) - x).square().mean()
    return loss, {}


SETTINGS = {"epochs": 2, "batch_size": 8, "lr": 1e-2, "device": "cpu", "progress": False}


def test_a_rehearsal_that_fails_leaves_nothing_behind(capsys):
    """Neither weights nor averages nor chance nor gradients. What one that goes well leaves is seen in the losses above."""
    points = torch.randn(32, 4)
    plain = fit(network(), noisy, points, compile=False, **SETTINGS)

    def fails(model, x):
        loss, metrics = noisy(model, x)
        if torch.compiler.is_compiling():
            raise RuntimeError("this is no graph")
        return loss, metrics

    found = fit(network(), fails, points, compile="eager", **SETTINGS)
    assert not found.compiled and "the model trains step by step" in capsys.readouterr().err
    for name, value in plain.model.state_dict().items():
        assert torch.equal(found.model.state_dict()[name], value)


def test_an_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="compile is 'inducktor'.*did you mean 'inductor'"):
        fit(network(), noisy, torch.randn(32, 4), compile="inducktor", **SETTINGS)


def test_a_checkpoint_of_another_way_is_refused(tmp_path):
    points, file = torch.randn(32, 4), tmp_path / "checkpoint.pt"
    fit(network(), noisy, points, checkpoint=file, **SETTINGS)
    with pytest.raises(ValueError, match="graph was None, is {'backend': 'eager'}"):
        fit(network(), noisy, points, checkpoint=file, compile="eager", **SETTINGS)


def test_a_job_compiles_where_it_pays_unless_told(tmp_path):
    assert Job(tmp_path).compile is None
    assert graphs.graph_options(Job(tmp_path).compile, "cuda", 50_000)
    assert not graphs.graph_options(Job(tmp_path).compile, "cpu", 50_000)
    assert not graphs.graph_options(Job(tmp_path).compile, "mps", 50_000)
