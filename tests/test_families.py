"""Every family of the book goes the same way: it trains, survives a kill, is computed again, draws or says why not, and knows its fields."""

import dataclasses
import json
import multiprocessing
import os
import signal
from pathlib import Path

import pytest
import torch

from genbook import agreement, cli, families, recipes, runs, training
from genbook.checkpoints import load_checkpoint, save_checkpoint
from genbook.data import Split, Splits
from genbook.families import FAMILIES, Job, family

IMAGES = 150  # of each split: enough for a few steps


class FewImages(Splits):
    """A data set of which the first images of each split are enough."""

    def __getitem__(self, split):
        images, labels = super().__getitem__(split)
        return Split(images[:IMAGES], None if labels is None else labels[:IMAGES])


def tiny(name: str):
    """The rehearsal of a family's first recipe, for an epoch where it has more."""
    recipe = next(iter(family(name).recipes.values())).smoke()
    fields = {field.name for field in dataclasses.fields(recipe)}
    once = {"epochs": 1} if "epochs" in fields else {}
    return dataclasses.replace(recipe, name=f"{name}+smoke", **once)


def train_and_be_killed(name: str, out: Path, threads: int, after: int) -> None:
    """Train a family's rehearsal in this process, which dies the moment a checkpoint was written so many times."""
    torch.set_num_threads(threads)
    families.Splits = FewImages
    # A checkpoint after each step, so that the kill comes in the middle of an epoch.
    fit = training.fit
    training.fit = lambda *given, **named: fit(*given, **{**named, "checkpoint_seconds": 0})
    replace, written = os.replace, 0

    def replace_and_die(source, target):
        nonlocal written
        replace(source, target)
        written += Path(target).name == "checkpoint.pt"
        if written == after:
            os.kill(os.getpid(), signal.SIGKILL)

    os.replace = replace_and_die
    family(name).train(tiny(name), Job(out, device="cpu", progress=False))


def untimed(found: dict) -> dict:
    """What was found, without the seconds that it took."""
    return {key: value for key, value in found.items() if not key.endswith("seconds")}


@pytest.fixture(scope="module", autouse=True)
def few_images():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(families, "Splits", FewImages)
        patch.setattr(agreement, "Splits", FewImages)
        yield


@pytest.fixture(scope="session")
def server():
    """Where processes start that have imported the families already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*FAMILIES.values()])
    return context


@pytest.fixture(scope="module", params=FAMILIES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def run(name, tmp_path_factory):
    """A finished rehearsal of a family."""
    out = tmp_path_factory.mktemp("families") / f"{name}+smoke"
    return family(name).train(tiny(name), Job(out, device="cpu", progress=False))


def test_a_rehearsal_leaves_a_whole_record(name, run):
    assert runs.validate(run.path, families.recipe_fields()) == []
    assert run.record["recipe"]["family"] == name
    assert not (run.path / "checkpoint.pt").exists()


def test_a_killed_run_goes_on_to_the_same_record(name, run, server, tmp_path):
    out = tmp_path / f"{name}+smoke"
    process = server.Process(
        target=train_and_be_killed, args=(name, out, torch.get_num_threads(), 2)
    )
    process.start()
    process.join(300)
    assert process.exitcode == -signal.SIGKILL, "it was to be killed on its way"
    assert (runs.Place(out).scratch / "checkpoint.pt").is_file() and not out.exists()
    again = family(name).train(tiny(name), Job(out, device="cpu", progress=False))
    assert runs.validate(out, families.recipe_fields()) == []
    assert not (out / "checkpoint.pt").exists() and not runs.Place(out).scratch.exists()
    # What measures the clock is another time, in what is kept as in the figures.
    assert untimed(again.record["metrics"]) == untimed(run.record["metrics"])
    kept, known = (untimed(runs.load_weights(one.weights)) for one in (again, run))
    assert kept.keys() == known.keys()
    assert all(torch.equal(kept[key], known[key]) for key in kept)
    pictures, wanted = ({p.name: p.read_bytes() for p in one.samples} for one in (again, run))
    assert pictures == wanted
    left, whole = ({p.relative_to(at) for p in at.rglob("*")} for at in (out, run.path))
    assert left == whole


def test_its_figures_are_computed_again(run):
    assert {row["verdict"] for row in agreement.compare(run)} == {"agrees"}


def test_it_draws_images_or_says_in_a_sentence_why_not(name, run, tmp_path, capsys):
    of = family(name)
    picture = tmp_path / "samples.png"
    status = cli.main(["sample", str(run.path), "-n", "3", "--out", str(picture)])
    out, err = capsys.readouterr()
    if of.draw is None:
        assert (status, out) == (2, "") and not picture.exists()
        assert err == f"error: {run.name} draws no images: {of.draws_nothing}\n"
        return
    assert status == 0 and picture.read_bytes().startswith(b"\x89PNG")
    images = of.sample(run, 3)
    assert images.ndim == 4 and len(images) == 3 and images.min() >= 0 and images.max() <= 1
    assert torch.equal(images, of.sample(run, 3)) and not torch.equal(images, of.sample(run, 3, 1))
    with pytest.raises(ValueError, match="n must be at least 1, got 0"):
        of.sample(run, 0)


def test_an_unknown_field_is_refused_by_name(name, run, tmp_path):
    with pytest.raises(ValueError, match=rf"no field of {name}\+smoke is called 'colour'"):
        recipes.override(tiny(name), ["colour=red"])
    record = json.loads((run.path / "run.json").read_text("utf-8"))
    record["recipe"]["colour"] = "red"
    (tmp_path / "run.json").write_text(json.dumps(record), encoding="utf-8")
    problems = runs.validate(tmp_path, families.recipe_fields())
    assert "recipe has an unknown field 'colour'" in problems
    with pytest.raises(TypeError, match="'colour'"):
        family(name).build(runs.Run(tmp_path))


def test_a_record_of_another_family_is_refused(name, run):
    other = next(kind for kind in FAMILIES if kind != name)
    with pytest.raises(ValueError, match=f"is a record of the family {name}, not of {other}"):
        family(other).build(run)


# The list


def test_recipes_are_of_their_family():
    for name, (of, recipe) in families.all_recipes().items():
        assert isinstance(recipe, of.recipe) and recipe.name == name
        assert dataclasses.is_dataclass(recipe) and recipe.__dataclass_params__.frozen
        assert {"name", "data", "precision", "seed"} <= {f.name for f in dataclasses.fields(recipe)}


def test_headlines_are_of_recipes():
    for name in FAMILIES:
        assert family(name).headlines.keys() <= family(name).recipes.keys()


def test_an_unknown_family_is_refused():
    with pytest.raises(ValueError, match="no family is called 'vea'"):
        family("vea")


def test_a_measurement_goes_on_from_its_own_checkpoint_alone(tmp_path):
    job, settings = families.Job(tmp_path), {"recipe": "a"}
    measured = families.Measured(job, settings)
    measured.once("one", lambda: {"x": torch.ones(3)})
    state = load_checkpoint(job.checkpoint)
    for change in (
        {"tensors": {}},
        {"tensors": {"one.x": torch.ones(2)}},
        {"tensors": {"one.x": 1}},
        {"tensors": state["tensors"] | {"two.x": torch.ones(3)}},
        {"seconds": {}},
        {"seconds": {"one": -1.0}},
        {"seconds": {"one": 1.0, "two": 1.0}},
        {"seconds": 3},
        {"shapes": {}},
        {"more": 1},
    ):
        save_checkpoint(job.checkpoint, state | change)
        with pytest.raises(ValueError, match="checkpoint.pt does not fit this run"):
            families.Measured(job, settings)
    save_checkpoint(job.checkpoint, state)
    again = families.Measured(job, settings)
    again.once("one", lambda: 1 / 0)
    assert torch.equal(again["one.x"], torch.ones(3))
