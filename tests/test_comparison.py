"""The comparison of recorded models: the choice of images, properties of the measures, bad input, resuming, the records."""

import dataclasses
import math

import pytest
import torch

from genbook.data import Splits
from genbook.descent import in_precision
from genbook.families import Job, Measured, family_of
from genbook.judges.quality import class_shares, frechet_distance, kernel_distance, precision_recall
from genbook.measures import entropy
from genbook.results import comparison
from genbook.results.comparison import (
    RECIPES,
    black_and_white,
    chosen,
    detail_distance,
    judge_of,
    model_images,
    seconds_per_1000,
)
from genbook.runs import Place, Run


@pytest.fixture(scope="module")
def open_run(root):
    return lambda name: Run(root / "runs" / name)


@pytest.fixture(scope="module", params=["comparison-svhn", "comparison-mnist"])
def record(request, open_run):
    return open_run(request.param)


def test_black_and_white_has_the_image_as_its_mean():
    torch.manual_seed(0)
    x = torch.tensor([-1.0, -0.5, 0.0, 0.9, 1.0]).expand(40_000, 1, 1, 5)
    drawn = black_and_white(x)
    assert set(drawn.unique().tolist()) == {-1.0, 1.0}
    error = (1 - x[0] ** 2).sqrt() / 200
    assert ((drawn.mean(0) - x[0]).abs() <= 4 * error + 1e-6).all()


def test_chosen_images_are_different_ones():
    levels = {
        name: torch.arange(n, dtype=torch.uint8).view(n, 1, 1, 1)
        for name, n in (("train", 100), ("valid", 40), ("test", 60))
    }
    sets = chosen(**levels, n=30, seed=3)
    flat = {name: set(images.flatten().tolist()) for name, images in sets.items()}
    assert all(len(some) == 30 for some in flat.values())
    assert not flat["test"] & flat["others"]
    assert chosen(**levels, n=30, seed=3)["valid"].equal(sets["valid"])
    with pytest.raises(ValueError, match="too few"):
        chosen(**levels, n=31)


def test_detail_distance():
    torch.manual_seed(0)
    x, y = torch.rand(2, 50) + 0.1
    assert detail_distance(x, x) == 0
    assert detail_distance(x, y) == pytest.approx(detail_distance(y, x.flip(0)))
    assert detail_distance(2 * x, x) == pytest.approx(math.log(2))
    assert detail_distance(x, y) <= (x.log() - y.log()).abs().mean() + 1e-9  # no plan is better
    for bad in ((x, y[1:]), (x[None], y[None]), (x[:0], y[:0]), (x - x.min(), y)):
        with pytest.raises(ValueError, match="as many numbers|above 0"):
            detail_distance(*bad)


def test_draws_are_those_of_the_likelihood(open_run):
    """Draws of a Gaussian VAE are its modes and noise of its variance, cut off at the ends of the scale."""
    run = open_run("vae-svhn-sigma")
    sigma = family_of(run).build(run)[1].output_logvar.exp().sqrt().item()
    mode, drawn = (model_images(run, 100, draws) for draws in (False, True))
    assert mode.shape == drawn.shape == (100, 3, 32, 32) and drawn.abs().max() <= 1
    inside = mode.abs() < 1 - 5 * sigma
    assert (drawn - mode)[inside].std().item() == pytest.approx(sigma, rel=0.02)
    grey, black = (model_images(open_run("gan-mnist"), 100, draws) for draws in (False, True))
    assert set(black.unique().tolist()) == {-1.0, 1.0}
    assert (black.mean() - grey.mean()).abs() < 0.02


def test_judges(open_run):
    for name, shape in (("svhn-classifier", (3, 32, 32)), ("gan-mnist", (1, 28, 28))):
        judge = judge_of(open_run(name))
        x = torch.zeros(2, *shape)
        features = judge.features(x)
        assert features.shape == (2, 128) and (features >= 0).all()
        last = judge.last if hasattr(judge, "last") else judge[-1]
        torch.testing.assert_close(last(features), judge(x))


def test_recipes_name_what_there_is(open_run):
    for recipe in RECIPES.values():
        assert {"test", "others", "train"} <= set(recipe.sets)
        for name in (recipe.judge, *recipe.models()):
            assert open_run(name).record["name"] == name
        for name in recipe.sets:
            assert recipe.reference(name) in recipe.sets


def test_smoke_resume_and_evaluate(tmp_path, monkeypatch):
    recipe = RECIPES["comparison-mnist"].smoke()
    job = Job(tmp_path / "run", progress=False)
    inside = Job(Place(job.out).scratch, progress=False)
    made = comparison.measure(recipe, inside, Splits(recipe.data))
    assert inside.checkpoint.exists()
    monkeypatch.setattr(comparison, "model_images", None)  # nothing is drawn again
    run = comparison.record(recipe, job)
    assert not inside.out.exists()
    assert comparison.evaluate(run) == run.record["metrics"]
    assert {p.stem for p in run.samples} == {name.replace(" ", "-") for name in recipe.sets}
    assert made.kept["test.features"].shape == (recipe.samples, 128)
    again, found = comparison.build(run)
    assert again == recipe and found.keys() == made.kept.keys()
    with pytest.raises(ValueError, match="it compares models; sample one of them instead"):
        comparison.FAMILY.sample(run, 1)


def test_another_recipes_checkpoint_is_refused(tmp_path):
    recipe = RECIPES["comparison-mnist"].smoke()
    job = Job(tmp_path, progress=False)
    Measured(job, {"name": "another"}).once("x", dict)
    with pytest.raises(ValueError, match="checkpoint"):
        comparison.measure(recipe, job, Splits(recipe.data))


def test_record_is_whole(record):
    recipe, found = comparison.build(record)
    assert recipe == RECIPES[record.name]
    for name in recipe.sets:
        assert found[f"{name}.features"].shape == (recipe.samples, 128)


def test_figures_come_from_what_is_kept(record):
    """All values but the intervals, which `genbook evaluate` computes again in minutes."""
    recipe, found = comparison.build(record)
    for name in recipe.sets:
        key, known = name.replace(" ", "_"), recipe.reference(name)
        classes = torch.nn.functional.one_hot(found[f"{name}.classes"].long(), 10).float()
        assert record.figure(f"{key}_entropy") == pytest.approx(entropy(class_shares(classes)))
        rough = found[f"{name}.roughness"].double()
        assert record.figure(f"{key}_roughness") == pytest.approx(rough.mean().item())
        for what in ("memorised", "seconds"):
            if f"{name}.{what}" in found:
                assert record.figure(f"{key}_{what}") == pytest.approx(
                    found[f"{name}.{what}"].item()
                )
        if name == known:
            continue
        x, y = (found[f"{which}.features"].float() for which in (name, known))
        assert record.figure(f"{key}_frechet") == pytest.approx(frechet_distance(x, y), rel=1e-6)
        assert record.figure(f"{key}_kernel") == pytest.approx(kernel_distance(x, y), rel=1e-6)
        assert record.figure(f"{key}_detail") == pytest.approx(
            detail_distance(rough, found[f"{known}.roughness"])
        )
        precision, recall = precision_recall(y, x)
        assert (record.figure(f"{key}_precision"), record.figure(f"{key}_recall")) == (
            precision,
            recall,
        )


def test_the_floor_is_a_floor(record):
    recipe, _ = comparison.build(record)
    assert record.figure("others_kernel_low") < 0 < record.figure("others_kernel_high")
    for name in recipe.models():
        assert record.figure(f"{name}_kernel_low") > record.figure("others_kernel_high")
        assert record.figure(f"{name}_frechet") > record.figure("others_frechet")


def test_pictures_are_drawn_again(open_run, record):
    """The kept pictures of a quick model come from its recorded weights: the same seed draws them again."""
    recipe, _ = comparison.build(record)
    name = {"comparison-svhn": "vae-svhn", "comparison-mnist": "gan-mnist"}[record.name]
    side = 32 if record.name == "comparison-svhn" else 28
    kept = record.tiles(name, side=side)[:40].float() / 255
    with in_precision(recipe.precision):
        x = model_images(open_run(name), recipe.samples, seed=recipe.seed)[:40]
    assert (kept[:, : x.shape[1]] - 0.5 * (x.clamp(-1, 1) + 1)).abs().mean() < 0.01


def test_more_than_the_data_has_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPES["comparison-mnist"].smoke(), samples=100_000)
    with pytest.raises(ValueError, match="too few"):
        comparison.measure(recipe, Job(tmp_path, progress=False), Splits(recipe.data))


def test_own_randomness(open_run):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    model_images(open_run("gan-mnist"), 2, draws=True)
    assert torch.equal(torch.rand(3), expected)


def test_another_judge_is_refused(tmp_path, monkeypatch):
    recipe = RECIPES["comparison-mnist"].smoke()
    comparison.measure(recipe, Job(tmp_path, progress=False), Splits(recipe.data))
    monkeypatch.setattr(comparison, "judge_weights", lambda run: run.weights)
    with pytest.raises(ValueError, match="judge"):
        comparison.measure(recipe, Job(tmp_path, progress=False), Splits(recipe.data))


def test_bad_recipes():
    recipe = RECIPES["comparison-mnist"]
    with pytest.raises(ValueError, match="sets must hold 'test'"):
        dataclasses.replace(recipe, sets=("others", "gan-mnist"))
    with pytest.raises(ValueError, match="samples must be at least 16"):
        dataclasses.replace(recipe, samples=7)


def test_seconds(open_run, monkeypatch):
    assert 0 < seconds_per_1000(open_run("gan-mnist"), 2000, 100) < 10
    clock = iter((0, 9, 10, 12, 20, 27))  # warm, few: 2 seconds, n: 7 seconds
    monkeypatch.setattr(comparison.time, "process_time", lambda: next(clock))
    assert seconds_per_1000(open_run("gan-mnist"), 110, 10) == 50
    for n, few in ((10, 10), (10, 20), (10, 0)):
        with pytest.raises(ValueError, match="few must be above 0"):
            seconds_per_1000(open_run("gan-mnist"), n, few)
