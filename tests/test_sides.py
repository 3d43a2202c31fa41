"""Two sides and a judge: what may stand on a side, what is refused, and what the figures are."""

import json
import shutil

import numpy as np
import pytest
import torch

from genbook import cli, runs
from genbook.data.toys import toy_house_numbers
from genbook.images import roughness, scale_pixels
from genbook.judges.examination import blurred, judge, line_distance
from genbook.judges.quality import frechet_distance, kernel_distance, precision_recall
from genbook.results import sides
from genbook.results.comparison import detail_distance
from genbook.results.sides import quality_of, shape_for, source


@pytest.fixture
def genbook(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder of its own: its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for k, name in enumerate(("one", "two")):
        np.savez(f"{name}.npz", images=toy_house_numbers(80, seed=k).images.numpy())
    soft = blurred(toy_house_numbers(80, seed=2).images, 2)
    np.savez("soft.npz", images=soft.numpy())

    def run(*arguments):
        status = cli.main(list(map(str, arguments)))
        return status, *capsys.readouterr()

    return run


def test_the_figures_are_those_of_the_judges_chapters(genbook):
    """Each is computed again here, from the images that stand on the two sides."""
    found = quality_of("soft.npz", "one.npz", judge="spectra", n=30, seed=4)
    chosen = sides.sides(source("soft.npz"), source("one.npz"), (3, 32, 32), 30, 4)
    of = judge("spectra", chosen.b)
    x, y, z = (of.look(levels) for levels in (chosen.a, chosen.b, chosen.others))
    own = found.figures[0]
    assert own.value == pytest.approx(line_distance(x, y)) and own.low < own.high
    assert own.floor == pytest.approx(line_distance(z, y))
    assert found.farther[0] == pytest.approx(own.value - own.floor)
    rows = {row.figure: row for row in found.figures}
    # Distances of two Gaussians and shares in balls do not change with a turn, only with the scale.
    scale = (y.double().var(0).sum() / min(29, y.shape[1])).sqrt()
    assert rows["Fréchet"].value == pytest.approx(
        frechet_distance(x.double() / scale, y.double() / scale), rel=1e-3
    )
    assert (rows["precision"].value, rows["recall"].value) == precision_recall(y, x)
    assert rows["precision"].floor == precision_recall(y, z)[0]
    middle = y.double().mean(0)
    one, two = ((some.double() - middle) / scale for some in (x, y))
    assert rows["kernel"].value == pytest.approx(kernel_distance(one, two), rel=1e-3)
    rough = [roughness(scale_pixels(levels)) for levels in (chosen.a, chosen.b)]
    assert rows["detail"].value == pytest.approx(detail_distance(*rough))


def test_the_seed_decides_and_other_halves_are_other_images(genbook):
    again = [quality_of("soft.npz", "one.npz", n=20, seed=seed) for seed in (0, 0, 1)]
    assert again[0] == again[1] != again[2]
    chosen = sides.sides(source("one.npz"), source("two.npz"), (3, 32, 32), seed=1)
    assert len(chosen.a) == len(chosen.b) == len(chosen.others) == 40
    both = torch.cat([chosen.b, chosen.others]).flatten(1)
    assert len(both.unique(dim=0)) == 80


def test_images_alike_are_not_told_apart_and_blurred_ones_are(genbook):
    assert not quality_of("two.npz", "one.npz").told_apart
    found = quality_of("soft.npz", "one.npz")
    assert found.told_apart and found.figures[-1].value > 3 * found.figures[-1].floor


def test_copies_in_b_count_once_and_in_a_they_stay(genbook):
    few = toy_house_numbers(40, seed=5).images.numpy()
    np.savez("twice.npz", images=np.concatenate([few, few]))
    found = quality_of("one.npz", "twice.npz")
    assert (
        found.n == 20 and "40 copies of other pictures in twice.npz were left out." in found.notes
    )
    assert quality_of("twice.npz", "one.npz").n == 40


def test_a_picture_of_one_colour_has_the_detail_of_rounding(genbook):
    np.savez("flat.npz", images=np.full((40, 32, 32, 3), 99, np.uint8))
    rows = {row.figure: row for row in quality_of("flat.npz", "one.npz", n=20).figures}
    assert np.isfinite(rows["detail"].value) and rows["detail"].value > 3


@pytest.mark.parametrize(
    ("judge_name", "common", "wanted"),
    [
        ("patches", (3, 16, 16), (3, 28, 28)),
        ("patches", (1, 30, 30), (1, 32, 32)),
        ("patches", (3, 64, 64), (3, 64, 64)),
        ("spectra", (1, 17, 17), (1, 17, 17)),
        ("svhn-classifier", (1, 64, 64), (3, 32, 32)),
        ("simsiam-cifar10", None, (3, 32, 32)),
        ("gan-mnist", (3, 32, 32), (1, 28, 28)),
    ],
)
def test_a_judge_says_which_images_it_looks_at(judge_name, common, wanted):
    assert shape_for(judge_name, common) == wanted


def test_an_examination_is_asked_for_images_of_its_kind_alone():
    passed, failed = (
        sides.ladders_climbed(name, "svhn") for name in ("patches", "svhn-classifier")
    )
    assert passed[0] == failed[0] == "examination-svhn"
    assert all(passed[1][ladder] for ladder in sides.LOOKS) and not passed[1]["classes"]
    assert failed[1]["classes"] and not any(failed[1][ladder] for ladder in sides.LOOKS)
    assert sides.ladders_climbed("patches", "mnist") is None
    assert sides.ladders_climbed("vae-svhn", "svhn") is None


def test_a_judge_that_failed_is_refused_unless_it_is_asked_for(monkeypatch):
    told = sides._on_examination("spectra", "svhn", asked_for=True)
    assert "spectra failed examination-svhn: it climbed 2 of 4 ladders" in told
    with pytest.raises(ValueError, match=r"climbed 2 of 4 ladders.*name another judge"):
        sides._on_examination("spectra", "svhn", asked_for=False)
    assert "passed examination-svhn" in sides._on_examination("patches", "svhn", asked_for=False)
    of_others = sides._on_examination("svhn-classifier", "images:3x32:/x", asked_for=True)
    assert of_others.startswith("No judge was examined on images of this kind")
    failed = ("an-examination", dict.fromkeys(sides.LADDERS, False))
    monkeypatch.setattr(sides, "ladders_climbed", lambda name, data: failed)
    with pytest.raises(ValueError, match="patches failed an-examination: it climbed 0 of 4"):
        quality_of("toy_house_numbers", "toy_house_numbers:train")


def test_sides_are_found_by_name_and_parts_by_a_colon(genbook, tmp_path, root):
    shutil.copytree(root / "runs" / "vae-mlp-z2", tmp_path / "runs" / "mine")
    (tmp_path / "mnist").mkdir()
    for given, kind, part, shape in (
        ("mnist", "data set", "test", (1, 28, 28)),
        ("svhn:train", "data set", "train", (3, 32, 32)),
        ("mine", "run", "", (1, 28, 28)),
        ("mine draws", "run", "", (1, 28, 28)),
        ("runs/mine", "run", "", (1, 28, 28)),
        ("./mnist", "pictures", "", None),
        ("one.npz", "pictures", "", None),
        ("one.npz:test", "pictures", "test", None),
    ):
        found = source(given)
        assert (found.kind, found.part, found.shape) == (kind, part, shape), given


def test_samples_are_compared_in_the_shape_of_their_run(genbook, tmp_path, root):
    """And drawn with the family's sampler, or with the one that is named."""
    shutil.copytree(root / "runs" / "vae-mlp-z2", tmp_path / "runs" / "mine")
    found = quality_of("mine", "one.npz", n=20)
    assert "A: samples of mine, by means of p(x|z), seed 0." in found.notes
    assert "All images were brought to 1 x 28 x 28." in found.notes
    drawn = quality_of("mine draws", "one.npz", n=20)
    assert "A: samples of mine draws, by draws, seed 0." in drawn.notes
    assert drawn.figures[0].value != found.figures[0].value
    own = quality_of("one.npz", "mine", n=20)
    assert own.n == 20 and not any("learned from" in note for note in own.notes)


def test_training_pictures_on_the_other_side_are_said(genbook, tmp_path):
    arguments = ("--smoke", "--set", "epochs=1", "--set", "eval_images=5", "--set", "batch_size=16")
    place = ("--images", "one.npz", "--side", 16, "--out", "run")
    assert genbook("train", "vae-svhn", *arguments, *place)[0] == 0
    for other, learned in (("one.npz", True), ("one.npz:train", True), ("two.npz", False)):
        status, out, err = genbook("quality", "run", other, "-n", 16)
        assert status == 0, err
        assert ("B has pictures that run learned from" in out) == learned


def test_at_the_command_line(genbook):
    status, out, err = genbook("quality", "soft.npz", "one.npz")
    assert status == 0 and not err
    lines = out.splitlines()
    assert lines[0].split("\t") == ["figure", "value", "low", "high", "floor"]
    assert [line.split("\t")[0] for line in lines[1:7]] == [
        "patches", "kernel", "Fréchet", "precision", "recall", "detail",
    ]  # fmt: skip
    assert (
        lines[7]
        == "40 images of each side and of the floor; 95 % intervals, which allow for so few images."
    )
    assert lines[8].startswith(
        "patches can tell A from B: A's distance less the floor lies from 0."
    )
    assert lines[9] == "Judge: patches, which was trained on nothing."
    assert lines[10] == "No judge was examined on images of this kind, patches neither."
    status, out, _ = genbook("quality", "soft.npz", "one.npz", "--json")
    assert status == 0 and json.loads(out)["figures"][0]["value"] == pytest.approx(
        float(lines[1].split("\t")[1]), abs=1e-4
    )
    status, out, _ = genbook("quality", "two.npz", "one.npz", "--judge", "spectra", "-n", 20)
    assert status == 0 and "spectra cannot tell A from B by so few images" in out
    status, out, _ = genbook("quality", "one.npz", "toy_house_numbers", "-n", 20)
    assert status == 0 and "B: toy_house_numbers:test, 500 images to choose from." in out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("one.npz one.npz", "one.npz and one.npz are the same"),
        ("one.npz ./one.npz", "are the same"),
        ("some.npz one.npz", "30 of the 30 pictures of some.npz are in one.npz too"),
        ("one.npz one.npz:train", "are in one.npz:train too"),
        (
            "one.npz few.npz",
            "few.npz holds 20 different images, too few: 16 a side need 32, half of",
        ),
        ("few.npz one.npz -n 30", "few.npz holds 20 different images, too few: 30 a side need 30"),
        ("one.npz two.npz -n 41", "two.npz holds 80 different images, too few: 41 a side need 82"),
        ("one.npz two.npz -n 3", "n must be at least 16, got 3"),
        ("toy_digits toy_house_numbers", "has images of 1 x 28 x 28 and toy_house_numbers of 3"),
        ("mine one.npz --judge mine", "mine is no judge: vae has no features of images"),
        ("one.npz two.npz --judge patchs", "'patchs' is no judge"),
        ("one.npz two.npz --judge patchs", "did you mean 'patches'?"),
        ("one.npz mnits", "'mnits' is no run, no data set, and no place with pictures"),
        ("one.npz mnist:tests", "'tests' is no part of mnist; there are train, valid, test"),
        ("one.npz judge", "judge draws no images: a classifier names images"),
        ("'mine ddim-5' one.npz", "drawn by '', 'draws'"),
        ("one.npz tiny.npz", "of 9 pictures cannot be used"),
        ("one.npz notes.txt", "images are a folder, an .npz or a .parquet file"),
        (
            "toy_house_numbers one.npz --side 90",
            "toy_house_numbers: it has 32 by 32 pixels, and 90",
        ),
    ],
)
def test_what_cannot_be_compared_is_one_sentence(genbook, tmp_path, arguments, told, root):
    import shlex

    shutil.copytree(root / "runs" / "vae-mlp-z2", tmp_path / "runs" / "mine")
    shutil.copytree(root / "runs" / "svhn-classifier", tmp_path / "runs" / "judge")
    images = toy_house_numbers(80, seed=0).images.numpy()
    np.savez("some.npz", images=images[:30])
    np.savez("few.npz", images=toy_house_numbers(20, seed=7).images.numpy())
    np.savez("tiny.npz", images=images[:9, :, :3, :3])
    (tmp_path / "notes.txt").write_text("mine")
    status, out, err = genbook("quality", *shlex.split(arguments))
    assert (status, out) == (2, ""), err
    assert err.startswith("error: ") and told in err and len(err.splitlines()) == 1


def test_a_few_shared_pictures_are_said_and_no_more(genbook):
    many = toy_house_numbers(200, seed=9).images.numpy()
    many[0] = toy_house_numbers(80, seed=0).images[0].numpy()
    np.savez("many.npz", images=many)
    found = quality_of("many.npz", "one.npz", n=20)
    assert "1 of 200 pictures of many.npz are in one.npz too." in found.notes


def test_a_judge_of_weights_is_named_with_them():
    told = sides._who_judges("svhn-classifier")
    assert told.startswith("Judge: svhn-classifier, trained on svhn, weights ")
    weights = runs.Run.open("svhn-classifier").record["weights"]["sha256"]
    assert told.endswith(f"{weights[:12]}.")
