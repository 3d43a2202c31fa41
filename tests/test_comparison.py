"""The comparison of recorded models: the choice of images, properties of the measures, bad input, resuming, the records."""

import dataclasses
import math

import pytest
import torch

from genbook.data import Splits
from genbook.descent import in_precision
from genbook.diffusion.sampling import sample_ancestral, sample_ddim
from genbook.families import Job, Made, Measured, family_of
from genbook.images import scale_pixels
from genbook.judges.examination import blurred, distance_of
from genbook.judges.quality import class_shares, frechet_distance, kernel_distance, precision_recall
from genbook.measures import entropy
from genbook.randomness import own_randomness
from genbook.results import comparison, drawing
from genbook.results.comparison import (
    RECIPES,
    chosen,
    compared,
    detail_distance,
    judge_of,
)
from genbook.results.drawing import PART, black_and_white, drawn, painter
from genbook.runs import Place, Run


def images(run, how, n=100, seed=0):
    """Images in [−1, 1] as they come from a model."""
    with own_randomness(seed), torch.no_grad():
        return painter(run, how)(n).float()


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
    mode, draws = (images(run, how) for how in ("", "draws"))
    assert mode.shape == draws.shape == (100, 3, 32, 32) and draws.abs().max() <= 1
    inside = mode.abs() < 1 - 5 * sigma
    assert (draws - mode)[inside].std().item() == pytest.approx(sigma, rel=0.02)
    grey, black = (images(open_run("gan-mnist"), how) for how in ("", "draws"))
    assert set(black.unique().tolist()) == {-1.0, 1.0}
    assert (black.mean() - grey.mean()).abs() < 0.02


def test_images_are_rounded_to_levels_and_blurred_after(open_run):
    run = open_run("wgan-svhn")
    levels = drawn(run, "", 20, seed=4)["levels"]
    x = images(run, "", 20, seed=4)
    assert levels.dtype == torch.uint8
    assert (scale_pixels(levels) - x.clamp(-1, 1)).abs().max() <= 1 / 255 + 1e-6
    assert drawn(run, "blurred", 20, seed=4)["levels"].equal(blurred(levels, 1))


def test_a_diffusion_model_is_drawn_from_by_the_sampler_that_is_named(open_run):
    """The same noise by the package's samplers; batches of 64 begin with their own noise."""
    run = open_run("ddpm-toy")
    _, model = family_of(run).build(run)
    for how, sampler in (("ddim-2", sample_ddim), ("ancestral-3", sample_ancestral)):
        torch.manual_seed(5)
        noise = model.noise(4)
        with torch.no_grad():
            wanted = sampler(model.clipped_noise, model.diffusion, noise, int(how[-1]))
        found = images(run, how, 4, seed=5)
        # Another layout in memory rounds otherwise; another number of calls is another image.
        assert (found - wanted).abs().mean() < 1e-3
        another = images(run, how[:-1] + "4", 4, seed=5)
        assert (another - wanted).abs().mean() > 0.01


def test_other_ways_of_drawing_are_refused(open_run):
    for name, how, message in (
        ("wgan-svhn", "ddim-50", "images of wgan-svhn are drawn by '', 'draws'; got 'ddim-50'"),
        ("ddpm-toy", "euler-5", "or a sampler as 'ddim-50'; got 'euler-5'"),
        ("ddpm-toy", "ddim-", "got 'ddim-'"),
        ("svhn-classifier", "", "svhn-classifier draws no images: a classifier names images"),
    ):
        with pytest.raises(ValueError, match=message):
            painter(open_run(name), how)


def test_a_run_that_is_missing_is_named_with_the_command_that_makes_it(monkeypatch, tmp_path):
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path))
    for name, command in (
        ("vae-svhn+seed=1", "genbook train vae-svhn --set seed=1"),
        ("wgan-svhn+seed=2+lr=0.1", "genbook train wgan-svhn --set seed=2 --set lr=0.1"),
        ("wgan-svhm", "genbook train wgan-svhm"),
    ):
        recipe = dataclasses.replace(RECIPES["comparison-svhn"], sets=("test", f"{name} draws"))
        with pytest.raises(ValueError) as error:
            compared(recipe)
        assert str(error.value) == (
            f"comparison-svhn compares the run {name!r}, which isn't in {tmp_path}; "
            f"make it with: {command}"
        )


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
            kept = name.split("+")[0]  # of other seeds there is no record, but of the first one
            assert open_run(kept).record["name"] == kept
        for name in recipe.sets:
            assert recipe.reference(name) in recipe.sets


def test_smoke_resume_and_evaluate(tmp_path, monkeypatch):
    recipe = RECIPES["comparison-mnist"].smoke()
    job = Job(tmp_path / "run", progress=False)
    inside = Job(Place(job.out).scratch, progress=False)
    made = comparison.measure(recipe, inside, Splits(recipe.data))
    assert inside.checkpoint.exists()
    monkeypatch.setattr(comparison, "drawn", None)  # nothing is drawn again
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
        for judge in recipe.judges:
            looks = (found[f"{which}.{judge}"].float() for which in (name, known))
            value, _ = distance_of(judge)(*looks, resamples=20)
            assert record.figure(f"{key}_{judge}") == pytest.approx(value, rel=1e-5)
        if f"{name}.confidence" in found:
            sure = found[f"{name}.confidence"].double().mean().item()
            assert record.figure(f"{key}_confidence") == pytest.approx(sure, rel=1e-4)
        if recipe.judges:
            x, y = (found[f"{which}.{recipe.judges[0]}"].float() for which in (name, known))
        precision, recall = precision_recall(y, x)
        assert (record.figure(f"{key}_precision"), record.figure(f"{key}_recall")) == (
            precision,
            recall,
        )


def test_the_floor_is_a_floor(record):
    recipe, _ = comparison.build(record)
    assert record.figure("others_kernel_low") < 0 < record.figure("others_kernel_high")
    for name in recipe.of_models():
        key = name.replace(" ", "_")
        assert record.figure(f"{key}_frechet") > record.figure("others_frechet")
        for judge in recipe.judges or ("kernel",):
            assert record.figure(f"{key}_{judge}_low") > record.figure(f"others_{judge}_high")


def test_pictures_are_drawn_again(open_run, record):
    """The kept pictures of a quick model come from its recorded weights: the same seed draws them again."""
    recipe, _ = comparison.build(record)
    name = {"comparison-svhn": "vae-svhn", "comparison-mnist": "gan-mnist"}[record.name]
    side = 32 if record.name == "comparison-svhn" else 28
    kept = record.tiles(name, side=side)[:40].float()
    with in_precision(recipe.precision):
        levels = drawn(open_run(name), "", PART, 1000 * recipe.seed)["levels"][:40]
    assert (kept[:, : levels.shape[1]] - levels).abs().mean() < 2.5


def test_more_than_the_data_has_is_refused(tmp_path):
    recipe = dataclasses.replace(RECIPES["comparison-mnist"].smoke(), samples=100_000)
    with pytest.raises(ValueError, match="too few"):
        comparison.measure(recipe, Job(tmp_path, progress=False), Splits(recipe.data))


def test_own_randomness(open_run):
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    drawn(open_run("gan-mnist"), "draws", 2)
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
    assert 0 < drawn(open_run("gan-mnist"), "", 500)["seconds"] < 10
    clock = iter((10, 12, 20, 21, 30, 37))  # three parts of 2, 1 and 7 seconds
    monkeypatch.setattr(drawing.time, "process_time", lambda: next(clock))
    parts = {f"a draws|{i}": drawn(open_run("gan-mnist"), "draws", 4, i) for i in range(3)}
    kept = {f"{part}.{key}": value for part, of in parts.items() for key, value in of.items()}
    made = comparison._without_images(Made({**kept, "a draws.features": torch.ones(12)}, 0.0))
    assert made.kept.keys() == {"a draws.features", "a draws.seconds"}
    assert made.kept["a draws.seconds"].item() == pytest.approx(1000 * 10 / 12)
