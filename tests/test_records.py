"""The records of real data: whole, as good as the book says, and what their weights give.

Every figure is computed again in full by `genbook evaluate --all`, which takes minutes. Here the bounds are computed again in full, and
the estimates of log p(x), thousands of decoded images for each, on the first images of the test set.
"""

import csv
import dataclasses
import functools
import json
import math
import os

import pytest
import torch

from genbook import cli, data, families, runs
from genbook.descent import in_precision
from genbook.diffusion import ddpm, probes
from genbook.gan import two_lines
from genbook.judges import classifier
from genbook.randomness import own_randomness
from genbook.runs import load_weights
from genbook.selfsupervised import pretraining, rates, relatives, simsiam
from genbook.selfsupervised.views import Augmentation
from genbook.vae import binarised_mnist as vae
from genbook.vae import gaussian as gaussian_vae
from genbook.vae import gaussian_model
from genbook.vae.importance import importance_log_likelihood

ROOT = os.path.join(os.path.dirname(__file__), "..", "runs")
RECORDS = {run.name: run for run in runs.book_runs(ROOT)}
BINARY = [name for name, run in RECORDS.items() if run.recipe["family"] == "vae"]
COLOUR = [name for name, run in RECORDS.items() if run.recipe["family"] == "gaussian-vae"]
CRITICS = [name for name, run in RECORDS.items() if run.recipe["family"] == "critics"]
KINDS = {
    "vae": ("-means", "-draws"),
    "gaussian-vae": ("-samples", "-reconstructions"),
    "gan": ("-samples",),
    "ddpm": ("",),
}  # of pictures
PROBES = [name for name, run in RECORDS.items() if run.recipe["family"] == "probes"]
REPRESENTATIONS = [
    name for name, run in RECORDS.items() if run.recipe["family"] in ("simsiam", "relatives")
]
DIFFUSION = [name for name, run in RECORDS.items() if run.recipe["family"] == "ddpm"]
FIELDS = families.recipe_fields()


def record(name):
    """A record, or a skip that says it isn't made yet."""
    if name not in RECORDS:
        pytest.skip(f"runs/{name} is not recorded yet: genbook train {name}")
    return RECORDS[name]


@functools.cache
def splits_of(name):
    """A data set, read once and hashed once for all records that are of it."""
    return data.Splits(name, download=False)


def images(run, split):
    """The images of a split of a record's data, the very ones it was made from, or a skip that says why not."""
    if not os.environ.get("GENBOOK_DATA"):
        pytest.skip("GENBOOK_DATA is not set: no real data to compute the figures on")
    splits = splits_of(run.recipe["data"])
    try:
        digest = splits.digest(split)
    except data.DataError as error:
        pytest.skip(f"no data: {error}")
    if digest != run.record["data"]["splits"][split]["sha256"]:
        pytest.skip(f"the {split} images of {splits.name} at hand are not those of the record")
    return splits[split].images


@functools.cache
def built(name):
    """A record's recipe and model, read once for all that is computed with it."""
    return families.family_of(RECORDS[name]).build(RECORDS[name])


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_whole(name):
    assert runs.validate(RECORDS[name].path, FIELDS) == []


def test_records_are_small_enough():
    files = [path for run in RECORDS.values() for path in run.path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < runs.TOTAL_LIMIT
    assert all(path.stat().st_size < runs.FILE_LIMIT for path in files)


@pytest.mark.parametrize("name", RECORDS)
def test_record_is_of_its_recipe(name):
    """A record is of the recipe that the book has under its name, and covers all of its epochs."""
    run = RECORDS[name]
    family, recipe = cli.find_recipe(name)
    unused = {"channels"} if getattr(recipe, "network", None) == "mlp" else set()
    expected = {"family": family.name, **json.loads(json.dumps(dataclasses.asdict(recipe)))}
    assert {
        key: (run.recipe[key], value)
        for key, value in expected.items()
        if run.recipe[key] != value and key not in unused
    } == {}
    assert run.record["epochs_done"] == getattr(recipe, "epochs", 0)
    if family.name == "critics":  # no data set, no epochs, no pictures
        assert run.metrics["iteration"] == list(range(0, recipe.steps + 1, recipe.log_every))
        return
    if family.name in ("probes", "comparison", "rates", "examination"):
        # No epochs, or many short runs: when each part of the measurement was done.
        assert run.metrics["iteration"] == list(range(len(run.metrics["iteration"])))
        return
    assert run.metrics["epoch"] == list(range(recipe.epochs + 1))
    for epoch in getattr(recipe, "sample_epochs", ()):
        for kind in KINDS[family.name]:
            assert (run.path / "samples" / f"epoch-{epoch:03d}{kind}.png").is_file()


def test_record_says_nothing_of_the_machine_s_folders():
    for run in RECORDS.values():
        text = (run.path / "run.json").read_text("utf-8")
        assert not any(
            place in text for place in ("/home", "/root", "/tmp", "/work", "/Users", "\\\\")
        )


# What the records must show

LEAST = {
    ("vae-bmnist", "valid_elbo"): -101.5,
    ("vae-bmnist", "test_log_px"): -95.9,
    ("vae-bmnist-best", "test_log_px"): -88.5,
    ("iwae-bmnist", "test_log_px"): -87.0,
    ("vae-bmnist-fast", "valid_elbo"): -102.0,
}


@pytest.mark.parametrize(("name", "figure"), LEAST, ids=" ".join)
def test_figure_is_reached(name, figure):
    assert record(name).figure(figure) >= LEAST[name, figure]


@pytest.mark.parametrize("figure", ["valid_elbo", "test_elbo", "test_log_px"])
def test_monte_carlo_kl_costs_little(figure):
    assert abs(record("vae-bmnist-mc").figure(figure) - record("vae-bmnist").figure(figure)) <= 0.7


def test_best_is_quick():
    best = record("vae-bmnist-best").record
    assert (
        best["seconds"] <= 1800 and best["device"]["kind"] == "cpu" and best["device"]["cores"] <= 2
    )


@pytest.mark.parametrize(("name", "elbo"), [("vae-mlp-z2", -154.5), ("vae-mlp-z20", -101.0)])
def test_two_and_twenty_latents(name, elbo):
    assert abs(record(name).figure("valid_elbo") - elbo) <= 1.5
    assert [path.name for path in record(name).samples] == [
        f"epoch-{epoch:03d}-{kind}.png" for epoch in (0, 20, 40) for kind in ("draws", "means")
    ]


def test_figures_are_in_order():
    """What must hold of any VAE: more samples, tighter; log p(x) above the bound. A plain VAE above -85 would be a leak."""
    for run in map(record, BINARY):
        assert run.figure("test_log_px") > run.figure("test_elbo")
        if run.recipe["bound"] == "elbo":
            assert run.figure("test_log_px") < -85
        assert run.record["metrics"]["test_log_px"]["n"] == 10_000
    assert record("iwae-bmnist").figure("test_log_px") > record("vae-bmnist").figure("test_log_px")


@pytest.mark.parametrize("name", BINARY + COLOUR)
def test_curve_ends_at_the_figure(name):
    """The last row of the curve and the final figure differ by the noise of one sample of z and half precision."""
    run = RECORDS[name]
    within = 2 if name == "vae-svhn-sigma" else 0.25  # a larger bound, of narrower densities
    assert abs(run.metrics["valid_elbo"][-1] - run.figure("valid_elbo")) < within


# From the weights


@functools.cache
def terms(name, split):
    """The two terms of the bound of a binary VAE for each image of a split."""
    return vae.elbo_terms_of_images(built(name)[1], images(RECORDS[name], split))


@pytest.mark.parametrize("name", BINARY)
def test_bounds_are_those_of_the_weights(name):
    run = RECORDS[name]
    for split in ("valid", "test"):
        log_likelihood, divergence = terms(name, split)
        for figure, values in (
            (f"{split}_elbo", log_likelihood - divergence),
            (f"{split}_kl", divergence),
        ):
            metric = run.record["metrics"][figure]
            assert abs(values.mean().item() - metric["value"]) <= metric["tolerance"], figure
            assert (
                metric["n"] == len(values)
                and abs(values.std().item() / len(values) ** 0.5 - metric["se"]) < 0.01
            )


@pytest.mark.parametrize(
    "name", [name for name in BINARY if RECORDS[name].recipe["bound"] != "unscaled-noise"]
)
def test_log_likelihood_is_that_of_the_weights(name):
    """The first images of the test set: their mean gap between log p(x) and the bound is the record's, within five standard errors.

    The gap varies less from image to image than either of the two. The errata trained on another objective are left to `genbook
    evaluate`: without a proper bound a few images decide their means.
    """
    run = RECORDS[name]
    recipe, model = built(run.name)
    test = images(run, "test")
    log_likelihood, divergence = terms(name, "test")
    some = test[: max(30, min(300, 60_000 // recipe.eval_samples))]
    with own_randomness(0), torch.no_grad():
        log_px = importance_log_likelihood(model, some, recipe.eval_samples)
    elbo = log_likelihood - divergence
    gap = log_px - elbo[: len(some)]
    expected = run.figure("test_log_px") - run.figure("test_elbo")
    assert abs(gap.mean().item() - expected) < 5 * gap.std().item() / len(some) ** 0.5


# Colour images


def test_a_learned_variance_is_worth_thousands_of_nats():
    unit, learned = record("vae-svhn"), record("vae-svhn-sigma")
    floor = 3072 / 2 * gaussian_model.LOG_2PI
    assert max(unit.metrics["valid_elbo"]) < -floor and unit.figure("valid_elbo") > -2885
    assert learned.figure("valid_elbo") > unit.figure("valid_elbo") + 5000
    assert unit.figure("test_bits") > 8.3 and learned.figure("test_bits") < 6
    assert learned.figure("test_mse") < 0.6 * unit.figure("test_mse")


@pytest.mark.parametrize("name", COLOUR)
def test_figures_of_colour_images_are_in_order(name):
    run = RECORDS[name]
    for split in ("valid", "test"):
        assert run.figure(f"{split}_elbo") == pytest.approx(
            -run.figure(f"{split}_nll") - run.figure(f"{split}_kl"), abs=0.01
        )
    assert run.figure("test_gain") > 0
    assert run.figure("test_log_px") == pytest.approx(
        run.figure("test_elbo") + run.figure("test_gain"), abs=1e-6
    )
    assert run.figure("test_bits") < run.figure("test_elbo_bits")
    assert 0 < run.figure("active_units") <= run.recipe["latent"]


@pytest.mark.parametrize("name", COLOUR)
def test_portrait_is_whole(name):
    """What the chapter shows of the data, which it does not have."""
    with open(RECORDS[name].path / "profile.csv", newline="", encoding="utf-8") as file:
        profile = [
            {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]
    with open(RECORDS[name].path / "spectrum.csv", newline="", encoding="utf-8") as file:
        spectrum = [
            {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]
    assert [row["latent"] for row in profile] == list(range(RECORDS[name].recipe["latent"]))
    active = sum(row["variance_of_mean"] > gaussian_vae.ACTIVE for row in profile)
    assert active == RECORDS[name].figure("active_units")
    assert all(
        abs(row["mean"]) < max(abs(row[f"mean_{label}"]) for label in range(10)) + 1e-6
        for row in profile
    )
    assert [row["frequency"] for row in spectrum] == list(range(1, 17))
    assert all(
        row["reconstructions"] < row["images"] for row in spectrum if row["frequency"] >= 4
    )  # blur
    assert (RECORDS[name].path / "samples" / "neighbours.png").is_file()


@pytest.mark.parametrize("name", COLOUR)
def test_bounds_of_colour_images_are_those_of_the_weights(name):
    run = RECORDS[name]
    _, model = built(run.name)
    for split in ("valid", "test"):
        nll, kl, error = gaussian_vae.terms_of_images(model, images(run, split))
        figures = {"elbo": -nll - kl, "nll": nll, "kl": kl, "mse": error}
        for figure, values in figures.items():
            metric = run.record["metrics"][f"{split}_{figure}"]
            assert abs(values.mean().item() - metric["value"]) <= metric["tolerance"], figure
            assert metric["n"] == len(values)


@pytest.mark.parametrize("name", COLOUR)
def test_log_likelihood_of_colour_images_is_that_of_the_weights(name):
    """The first images of the test set: their mean gain over the bound is the record's, within five standard errors."""
    run = RECORDS[name]
    recipe, model = built(run.name)
    some = images(run, "test")[:250]  # the first batch of the bound: the same noise
    nll, kl, _ = gaussian_vae.terms_of_images(model, some)
    with own_randomness(0):
        gain = (
            model.log_likelihood(gaussian_vae.scale_pixels(some[:100]), recipe.eval_samples)
            + (nll + kl)[:100]
        )
    assert (
        abs(gain.mean().item() - run.figure("test_gain")) < 5 * gain.std().item() / len(gain) ** 0.5
    )


@pytest.mark.parametrize("name", COLOUR)
def test_active_latents_are_those_of_the_weights(name):
    run = RECORDS[name]
    _, model = built(run.name)
    means, _ = gaussian_vae.posteriors_of(model, images(run, "test"))
    assert (means.var(0) > gaussian_vae.ACTIVE).sum() == run.figure("active_units")


# Critics of two lines


def estimates_of(run):
    """The rows of a run's `estimates.csv`."""
    with open(run.path / "estimates.csv", newline="", encoding="utf-8") as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def test_critics_reach_both_exact_curves():
    run = record("critics-lines")
    rows = estimates_of(run)
    assert [row["theta"] for row in rows] == [i / 10 for i in range(21)]
    for row in rows:
        assert abs(row["w1"] - row["theta"]) <= 0.03
        assert abs(row["raw"] - row["w1"] - row["theta"] ** 2 / 100) < 0.01  # the penalty's share
        assert 0 <= row["w1_se"] < 0.001
        assert row["hellinger"] <= 2
        assert row["hellinger"] >= 1.95 if row["theta"] >= 0.2 else True
    assert abs(rows[0]["hellinger"]) < 0.01
    assert run.figure("w1_error") == pytest.approx(
        max(abs(row["w1"] - row["theta"]) for row in rows), abs=1e-7
    )
    assert run.figure("hellinger_least") == pytest.approx(
        min(row["hellinger"] for row in rows[2:]), abs=1e-7
    )


def test_gradient_descent_ramps_at_the_reports_budget_and_goes_on():
    run = record("critics-lines-sgd")
    row = run.metrics["iteration"].index(2500)
    at_budget = {theta: run.metrics[f"hellinger_{theta:g}"][row] for theta in run.recipe["thetas"]}
    for theta, reports in {0.1: 0.08, 0.2: 1.0, 0.3: 1.78}.items():
        assert abs(at_budget[theta] - reports) < 0.35
        assert run.metrics[f"hellinger_{theta:g}"][-1] > at_budget[theta] + 0.1
    assert run.figure("hellinger_least") > 1.9


@pytest.mark.parametrize("name", CRITICS)
def test_estimates_are_those_of_the_kept_weights(name):
    run = RECORDS[name]
    recipe, nets = built(run.name)
    rows = {row["theta"]: row for row in estimates_of(run)}
    for theta in recipe.kept:
        for objective in recipe.objectives:
            with own_randomness(recipe.seed + 2):
                found = two_lines.estimates(
                    objective, theta, nets[objective, theta], recipe.eval_samples, recipe.penalty
                )
            for key, value in found.items():
                assert value == pytest.approx(rows[theta][key], rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("name", ("critics-lines", "critics-lines-sgd"))
def test_all_estimates_come_from_what_was_measured(name):
    run = RECORDS[name]
    rows = two_lines.final_estimates(*built(name))
    kept = estimates_of(run)
    assert len(rows) == len(kept) == len(run.recipe["thetas"])
    for row, recorded in zip(rows, kept):
        assert row == {
            key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in recorded.items()
        }


# The minimax GAN


def test_gan_draws_all_digits_though_not_evenly():
    run = record("gan-mnist")
    assert run.figure("classifier_accuracy") > 0.98 and run.figure("sample_confidence") > 0.95
    assert run.figure("sample_rarest") > 0.02 and 2 < run.figure("sample_entropy") < run.figure(
        "test_entropy"
    )
    with open(run.path / "classes.csv", newline="", encoding="utf-8") as file:
        shares = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert [row["digit"] for row in shares] == list(range(10))
    for kind in ("train", "test", "sample"):
        assert sum(row[kind] for row in shares) == pytest.approx(1, abs=1e-5)
    assert min(row["sample"] for row in shares) == pytest.approx(
        run.figure("sample_rarest"), abs=1e-6
    )
    assert run.record["device"]["kind"] == "cpu" and run.record["seconds"] < 2 * 3600


@pytest.mark.parametrize("name", ("gan-mnist", "wgan-svhn", "svhn-classifier"))
def test_figures_are_those_of_the_weights(name):
    run = record(name)
    images(run, "test")  # or a skip
    again = families.family_of(run).figures(*built(name), splits_of(run.recipe["data"]))
    assert again.keys() == run.record["metrics"].keys()
    for key, metric in run.record["metrics"].items():
        assert abs(again[key]["value"] - metric["value"]) <= metric["tolerance"], key


# The WGAN


def test_wgan_has_the_steps_that_are_asked_for():
    run = record("wgan-svhn")
    assert run.metrics["step"][-1] >= 50_000 and run.recipe["critic_steps"] == 5
    for step in (0, 100, 200, 1000, 2000, 16000, 30000, run.metrics["step"][-1]):
        for kind in ("samples", "averaged"):
            assert (run.path / "samples" / f"step-{step:05.0f}-{kind}.png").is_file()


def test_wgan_comes_nearer_to_the_images():
    run = record("wgan-svhn")
    distance = run.metrics["train_wasserstein"]
    assert distance[-1] < 0.5 * max(distance[1:6])
    assert 0.5 < run.figure("sample_roughness") / run.figure("test_roughness") < 1.5
    assert run.figure("test_slope") < 1.2 and run.figure("test_penalty") < 0.05


# The judge of digits


def test_judge_is_right_often_enough():
    run = record("svhn-classifier")
    assert run.figure("test_accuracy") >= 0.94 and run.figure("test_calibration") < 0.05
    with open(run.path / "answers.csv", newline="", encoding="utf-8") as file:
        answers = [
            {key: float(value) for key, value in row.items()} for row in csv.DictReader(file)
        ]
    assert len(answers) == run.record["metrics"]["test_accuracy"]["n"]
    right = sum(row["label"] == row["answer"] for row in answers) / len(answers)
    assert right == pytest.approx(run.figure("test_accuracy"), abs=1e-9)


# Diffusion


@pytest.mark.parametrize("name", DIFFUSION)
def test_noise_is_predicted_as_recorded(name):
    """The losses, and the first term of the bound, from the weights; the whole bound is `genbook evaluate`'s."""
    run = RECORDS[name]
    recipe, model = built(run.name)
    test = images(run, "test")
    found = ddpm.losses(model, test[: recipe.eval_images], recipe.seed)
    metric = run.record["metrics"]["test_loss"]
    assert abs(found.mean().item() - metric["value"]) <= metric["tolerance"]
    with own_randomness(1), torch.no_grad():
        x = gaussian_vae.scale_pixels(test[:100])
        first = model.diffusion.bound_term(model.unet, x, torch.zeros(100, dtype=torch.int64))
    with open(run.path / "terms.csv", newline="", encoding="utf-8") as file:
        recorded = [float(row["bits"]) for row in csv.DictReader(file)]
    assert len(recorded) == recipe.timesteps
    assert first.mean() / (3072 * math.log(2)) == pytest.approx(recorded[0], rel=0.05)
    assert (
        sum(recorded) <= run.figure("test_bits") < sum(recorded) + 0.01
    )  # what is left is the prior's term


@pytest.mark.parametrize("name", DIFFUSION)
def test_diffusion_has_learned(name):
    run = record(name)
    loss = run.metrics["valid_loss"]
    assert loss[0] == pytest.approx(0.43, abs=0.06) and loss[-1] < 0.1 * loss[0]
    assert run.figure("test_bits") < 8  # what an image costs without any model


def test_three_lengths_had_one_budget():
    budgets = []
    for T in (500, 1000, 1500):
        recipe = dict(record(f"ddpm-small-t{T}").recipe)
        assert recipe.pop("timesteps") == T and recipe.pop("name")
        budgets.append(recipe)
    assert budgets[0] == budgets[1] == budgets[2]


def test_diffusion_of_photographs():
    """The compact model costs fewer bits than the best Gaussian VAE, and its samples aren't copies."""
    run = record("ddpm-svhn-compact")
    assert run.figure("test_bits") < record("vae-svhn-sigma").figure("test_bits") - 1
    metrics = run.record["metrics"]
    assert (
        run.figure("sample_neighbour")
        > run.figure("test_neighbour") - 4 * metrics["test_neighbour"]["se"]
    )


@pytest.mark.parametrize("name", PROBES)
def test_figures_are_those_of_what_was_measured(name):
    run = RECORDS[name]
    again = probes.evaluate(run)
    assert again.keys() == run.record["metrics"].keys()
    for key, metric in run.record["metrics"].items():
        assert abs(again[key]["value"] - metric["value"]) <= metric["tolerance"], key


@pytest.mark.parametrize("name", PROBES)
def test_drawn_images_are_those_of_the_weights(name):
    """The judge says of images that are drawn again what it said of those of the record, nearly: those were made in half precision."""
    recipe, found = built(name)
    _, model = built(record(recipe.model).name)
    _, judge = built(record(recipe.judge).name)
    sampler, steps = min(recipe.samplers, key=lambda each: each[1])
    steps = int(steps)
    with in_precision("bf16"):
        drawn = probes.draw(model, sampler, steps, recipe.samples, recipe.seed)
    features = classifier.class_features(judge, drawn)
    recorded = found[f"{sampler}-{steps}.features"]
    assert (features - recorded).norm() < 0.1 * recorded.norm()


def test_layers_know_more_than_pixels():
    run = record("ddpm-svhn-compact-probes")
    network, vae_means, pixels = (
        run.record["metrics"][f"{name}_probe"] for name in ("network", "vae", "pixels")
    )
    for other in (vae_means, pixels):
        assert (
            network["value"] > other["value"] + 4 * (network["se"] ** 2 + other["se"] ** 2) ** 0.5
        )
    assert run.figure("digit_lost") < run.figure("colour_lost")


@pytest.mark.parametrize(
    "name", [name for name in REPRESENTATIONS if not RECORDS[name].recipe["keep_weights"]]
)
def test_figures_of_representations_are_those_of_what_was_kept(name):
    family = {"simsiam": simsiam, "relatives": relatives}[RECORDS[name].recipe["family"]]
    assert family.evaluate(RECORDS[name]) == RECORDS[name].record["metrics"]


def test_the_monitor_sees_what_it_saw():
    """Of the default run, whose weights are kept, on the test images of the record; its kNN is for `genbook evaluate`, which takes minutes."""
    run = record("simsiam-cifar10")
    recipe, model = built(run.name)
    some = images(run, "test")[: recipe.monitored]
    z1, z2 = pretraining.views_of(model, some, Augmentation(), seed=recipe.seed)
    found = pretraining.monitor(z1, z2)
    kept = load_weights(run.file("features.safetensors"))
    assert found["apart"].mean().item() == pytest.approx(kept["apart"].mean().item(), abs=1e-3)
    assert pretraining.monitored(kept)["alignment"] == pytest.approx(run.figure("alignment"))
    for key, value in pretraining.monitored(found).items():
        assert abs(value - run.figure(key)) <= run.record["metrics"][key]["tolerance"], key


def test_representations_have_learned_or_collapsed():
    """kNN and the monitor, of runs of the same budget."""
    full, no_stop, identity = (
        record(f"simsiam-cifar10{name}") for name in ("", "-no-stopgrad", "-identity-predictor")
    )
    assert full.figure("test_knn") > 0.35 and full.figure("spread") * 2048**0.5 > 0.9
    for run in (no_stop, identity):
        assert run.figure("test_knn") < full.figure("test_knn") - 0.1
        assert (
            run.figure("spread") * 2048**0.5 < 0.25
            and run.figure("uniformity") > -0.05
            and run.figure("rank") < 3
        )


def test_each_method_has_the_rate_that_its_search_chose():
    """At neither end of the rates tried. Heavy views have SimSiam's; other seeds and more outputs change no rate. Runs of few epochs are older."""
    run = record("relatives-cifar10-rates")
    assert rates.evaluate(run) == run.record["metrics"]
    found = load_weights(run.weights)
    chosen = rates.chosen(run.recipe_as(rates.RatesRecipe), found)
    for method, rate in chosen.items():
        tried = sorted(rates.shares_of(found, method))
        assert tried[0] < rate < tried[-1], method
        assert rate == run.figure(f"{method}_rate")
    for recipe in (each for each in relatives.RECIPES.values() if each.epochs > 5):
        method = "simsiam" if recipe.method.startswith("simsiam") else recipe.method
        assert recipe.lr == chosen[method], recipe.name


def test_records_of_house_numbers_say_which_test_images_they_have():
    """Chapters speak of the first 10,000 of 26,032 test images."""
    published = data.DATASETS["svhn"].published["test"]
    of_svhn = {n: run for n, run in RECORDS.items() if run.record["data"]["name"] == "svhn"}
    assert {"vae-svhn", "vae-svhn-sigma", "wgan-svhn", "ddpm-svhn-compact"} <= of_svhn.keys()
    for name, run in of_svhn.items():
        n = run.record["data"]["splits"].get("test", {}).get("size")
        note = run.record["data"].get("note", "")
        assert n in (None, 10_000), name
        assert n is None or f"test: the first {n:,} of {published:,} published images" in note, name
