"""The diffusion model beyond what its chapter shows: its measures where the answer is known, samplers, bad input, what a run leaves."""

import dataclasses
import math

import pytest
import torch
from torch import nn

from genbook import data, training
from genbook.diffusion import ddpm
from genbook.diffusion.ddpm import (
    DDPM,
    RECIPES,
    bound_terms,
    denoising_loss,
    losses,
    spread_steps,
)
from genbook.diffusion.derivation import Diffusion, linear_betas
from genbook.families import Job


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def images():
    return data.toy_house_numbers(40, seed=1).images


def tiny(timesteps=20):
    return DDPM(timesteps, dim=8, mults=(1, 1, 1, 1)).eval()


def silent(timesteps=20):
    """A model that says that there is no noise."""
    model = tiny(timesteps)
    nn.init.zeros_(model.unet.to_noise.weight)
    nn.init.zeros_(model.unet.to_noise.bias)
    return model


def test_sizes_of_the_recipes():
    sizes = {
        name: sum(p.numel() for p in recipe.model().parameters())
        for name, recipe in RECIPES.items()
    }
    assert sizes["ddpm-svhn"] == 8_074_051 and 2.5e6 < sizes["ddpm-svhn-compact"] < 3.5e6
    assert sizes["ddpm-toy"] < 1.2e6
    budgets = [RECIPES[f"ddpm-small-t{T}"] for T in (500, 1000, 1500)]
    assert [recipe.timesteps for recipe in budgets] == [500, 1000, 1500]
    assert len({dataclasses.replace(recipe, name="any", timesteps=2) for recipe in budgets}) == 1
    course = RECIPES["ddpm-svhn"]
    assert (course.timesteps, course.lr, course.batch_size, course.epochs) == (1000, 1e-4, 64, 30)
    betas = course.model().diffusion.betas
    assert torch.allclose(betas[[0, -1]], torch.tensor([1e-4, 0.02]))
    for recipe in RECIPES.values():
        assert recipe.smoke().name == recipe.name and recipe.smoke().data == "toy_house_numbers"


def test_schedule_is_not_among_the_weights():
    """It follows from the recipe, and float16 would not hold it."""
    assert not [name for name in tiny().state_dict() if name.startswith("diffusion")]


def test_objective_of_silence(images):
    """Smooth L1 of standard normal noise itself, whatever the image and the step."""
    found = torch.stack([denoising_loss(silent(), images)[0] for _ in range(5)])
    assert abs(found.mean() - 0.42466) < 4 * 0.5 / (5 * 40 * 3072) ** 0.5
    again = losses(silent(), images)
    assert again.shape == (40,) and abs(again.mean() - 0.42466) < 4 * again.std() / 40**0.5


def test_objective_wants_levels(images):
    with pytest.raises(ValueError, match="uint8"):
        denoising_loss(tiny(), images.float())


def test_losses_are_the_same_again_and_leave_chance_alone(images):
    model, state = tiny(), torch.get_rng_state()
    first = losses(model, images, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(losses(model, images, seed=3), first)
    assert not torch.equal(losses(model, images, seed=4), first)


@pytest.mark.parametrize(("n", "T"), [(1000, 1000), (2000, 1000), (7, 1500), (501, 20), (1, 1)])
def test_spread_steps(n, T):
    steps = spread_steps(n, T)
    assert steps.dtype == torch.int64 and len(steps) == n and steps[0] == 0
    assert steps.tolist() == [math.floor(i * T / n) for i in range(n)]


def test_bound_of_silence(images):
    """Where the prediction is zero a term is its weight times the squared norm of the noise, 3,072 on average."""
    T = 30
    model = silent(T)
    means, squares, counts = bound_terms(model, images, first=160, least=20, seed=1)
    betas = torch.linspace(1e-4, 0.02, T, dtype=torch.float64)
    kept = (1 - betas).cumprod(0)
    variance = (betas[1:] * (1 - kept[:-1]) / (1 - kept[1:])).double()
    weight = betas[1:] ** 2 / (2 * variance * (1 - betas[1:]) * (1 - kept[1:]))
    assert counts[0] == 160 and counts[1] == 80 and counts[-1] == 20
    assert ((means[1:] - 3072 * weight).abs() < 5 * squares[1:].sqrt()).all()
    torch.testing.assert_close(squares[1:], (weight**2 * 2 * 3072) / counts[1:], rtol=1.5, atol=0)


def test_bound_terms_are_of_the_seed(images):
    model = tiny()
    first, again, other = (bound_terms(model, images, 10, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    for arguments in ({"first": 1}, {"least": 1}):
        with pytest.raises(ValueError, match="at least 2"):
            bound_terms(model, images, **arguments)


def test_samplers():
    model = tiny(12)
    for draw in (lambda: model.sample(3, 4), lambda: model.sample_ancestral(3)):
        torch.manual_seed(5)
        first = draw()
        torch.manual_seed(5)
        assert torch.equal(draw(), first)
        assert first.shape == (3, 3, 32, 32) and first.isfinite().all() and not first.requires_grad
    torch.manual_seed(5)
    loop = model.diffusion.p_sample_loop(model.clipped_noise, (3, 3, 32, 32))
    torch.testing.assert_close(first, loop[-1])
    assert first.abs().max() <= 1 + 1e-5  # the last guess is clipped too
    assert model.sample(2, 500).shape == (2, 3, 32, 32)  # no more steps than there are
    for n in (0, -1):
        with pytest.raises(ValueError, match="n must be at least 1"):
            model.sample(n)


def test_learning_lowers_the_loss(images):
    model = tiny(100)
    before = losses(model, images).mean()
    training.fit(
        model,
        denoising_loss,
        images,
        epochs=15,
        batch_size=20,
        lr=3e-3,
        device="cpu",
        progress=False,
    )
    assert losses(model, images).mean() < 0.8 * before


@pytest.fixture(scope="module")
def recipe():
    """A smoke recipe cut down further, so that a run of it takes seconds."""
    smoke = RECIPES["ddpm-svhn"].smoke()
    return dataclasses.replace(
        smoke,
        timesteps=12,
        mults=(1, 1, 1, 1),
        batch_size=200,
        samples=4,
        eval_images=20,
        bound_images=4,
        precision="fp32",
    )


def test_a_run_leaves_what_the_chapter_shows(tmp_path, recipe):
    run = ddpm.train(recipe, Job(tmp_path / "ddpm-svhn", device="cpu", progress=False))
    names = {path.name for path in run.samples}
    assert {"ancestral.png", "ddim.png", "images.png", "neighbours.png", "epoch-001.png"} <= names
    for name in ("losses.csv", "terms.csv", "sampling.csv"):
        assert (run.path / name).is_file()
    kept = run.table("terms")["bits"]
    assert kept[0] == pytest.approx(run.figure("test_bits_first"), rel=1e-4)
    assert run.figure("test_bits") > sum(kept)  # what the divergence at the end costs
    built, model = ddpm.build(run)
    assert built == recipe and not model.training


def test_lengths_are_refused():
    with pytest.raises(ValueError, match="timesteps must be at least 1"):
        DDPM(0)
    assert Diffusion(linear_betas(1000)).alphas_cumprod[-1].item() == pytest.approx(
        4.036e-5, rel=1e-3
    )
