"""Every family that learns from images learns from a reader's own, of another shape, and its record knows which they were."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from genbook import agreement, cli, families, runs
from genbook.cli_images import interpolated
from genbook.data import DATASETS, DataError
from genbook.families import Job, with_images

SMALLER = {  # than a rehearsal on three thousand toys
    "epochs": 1, "batch_size": 16, "eval_samples": 20, "eval_images": 10, "samples": 4, "k": 5,
    "monitored": 8, "bound_images": 8, "timesteps": 12, "sampler_steps": 3, "hidden": (16,),
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A hundred pictures with labels, and the same without."""
    place = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    for k in range(100):
        size = (30 + k % 7, 26 + k % 5)  # four patches of other colours, and noise
        patches = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((20, 20, 1)))
        noise = rng.integers(-40, 40, (40, 40, 3))
        picture = Image.fromarray((patches + noise).clip(0, 255).astype("uint8")).resize(size)
        for folder in (place / "named" / "ab"[k % 2], place / "loose"):
            folder.mkdir(parents=True, exist_ok=True)
            picture.save(folder / f"{k}.png")
    return place


def rehearsal(name, images, side):
    """A recipe's rehearsal on a reader's own images."""
    recipe = families.all_recipes()[name][1].smoke()
    fields = {field.name for field in dataclasses.fields(recipe)}
    fitting = {key: value for key, value in SMALLER.items() if key in fields}
    if name.startswith("gan"):
        fitting["eval_samples"] = 50
    if name.startswith("wgan"):
        fitting["width"] = 4
    return with_images(dataclasses.replace(recipe, **fitting), images, side)


@pytest.mark.parametrize(
    ("name", "images", "side"),
    [
        ("vae-bmnist", "named", 13),
        ("vae-bmnist-best", "loose", 12),
        ("vae-svhn", "named", 16),
        ("vae-svhn-sigma", "loose", 48),
        ("gan-mnist", "named", 15),
        ("gan-mnist", "loose", 24),
        ("wgan-svhn", "named", 8),
        ("wgan-svhn", "loose", 16),
        ("ddpm-svhn", "named", 16),
        ("simsiam-cifar10", "named", 40),
        ("simsiam-cifar10-course", "loose", None),
        ("byol-cifar10", "named", 20),
        ("vicreg-cifar10", "loose", 24),
        ("dssl-cifar10", "named", 24),
    ],
)
def test_a_family_learns_from_them_and_its_record_is_whole(name, images, side, pictures, tmp_path):
    recipe = rehearsal(name, pictures / images, side)
    family = families.all_recipes()[name][0]
    run = family.train(recipe, Job(tmp_path / recipe.name, device="cpu", progress=False))
    assert runs.validate(run.path) == []
    assert run.record["data"]["splits"]["all"]["size"] == 100
    assert run.recipe["data"].endswith(f"x{side or 32}:{pictures / images}")
    assert {row["verdict"] for row in agreement.compare(run)} == {"agrees"}
    named = [key for key in run.record["metrics"] if key.endswith(("knn", "accuracy"))]
    assert bool(named) == (images == "named" and not name.startswith(("vae", "wgan", "ddpm")))
    assert (family.draw is None) == (family.decode is None)
    if family.draw is not None:
        channels = DATASETS[families.all_recipes()[name][1].data].shape[0]
        assert family.sample(run, 3).shape == (3, channels, side, side)
        between = interpolated(run, through=3, steps=2)
        assert between.shape == (4, channels, side, side)
        assert between.min() >= 0 and between.max() <= 1
        torch.testing.assert_close(between[1], between[2], rtol=0, atol=1e-5)


def test_other_pictures_at_that_place_are_said_in_one_sentence(pictures, tmp_path):
    shutil.copytree(pictures / "loose", tmp_path / "loose")
    recipe = rehearsal("vae-bmnist", tmp_path / "loose", 8)
    run = families.family("vae").train(recipe, Job(tmp_path / "run", device="cpu", progress=False))
    (tmp_path / "loose" / "0.png").rename(tmp_path / "loose" / "another-name.png")
    assert {row["verdict"] for row in agreement.compare(run)} == {"agrees"}
    Image.new("RGB", (9, 9)).save(tmp_path / "loose" / "0.png")
    with pytest.raises(DataError, match="loose holds other images than the 100 that it was made"):
        agreement.compare(run)
    (tmp_path / "loose").rename(tmp_path / "gone")
    with pytest.raises(DataError, match="there is no such folder"):
        agreement.compare(run)
    shutil.copytree(pictures / "loose", tmp_path / "elsewhere" / "loose")
    assert {row["verdict"] for row in agreement.compare(run, tmp_path / "elsewhere")} == {"agrees"}


@pytest.fixture
def genbook(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder of its own: its exit status, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments):
        status = cli.main(list(map(str, arguments)))
        return status, *capsys.readouterr()

    return run


def test_at_the_command_line(genbook, pictures, tmp_path):
    arguments = ("--smoke", "--set", "epochs=1", "--images", pictures / "loose", "--side", 20)
    name = "vae-bmnist+smoke+epochs=1+images=loose+side=20"
    status, out, _ = genbook("train", "vae-bmnist", *arguments)
    assert status == 0 and out.splitlines()[-1] == f"recorded in {tmp_path / 'runs' / name}"
    assert json.loads((tmp_path / "runs" / name / "run.json").read_text())["name"] == name
    status, out, _ = genbook("train", "vae-bmnist", *arguments)
    assert status == 0 and "holds this run, finished" in out
    status, out, err = genbook("evaluate", name)
    assert status == 0 and "differs" not in out and not err
    status, out, _ = genbook("sample", name, "-n", 4)
    assert status == 0 and Image.open(f"{name}-samples.png").size == (41, 41)


def test_images_go_onto_the_disk_in_the_form_of_out(genbook, pictures, tmp_path):
    arguments = ("--smoke", "--set", "epochs=1", "--images", pictures / "loose", "--side", 20)
    assert genbook("train", "vae-mlp-z2", *arguments, "--out", "run")[0] == 0
    for command, n, more in (
        ("sample", 6, ("-n", 6)),
        ("interpolate", 8, ("--through", 3, "-n", 4)),
    ):
        for out in (f"{command}.npz", command, f"{command}.jpg", f"{command}.png"):
            status, told, err = genbook(command, "run", *more, "--out", out)
            assert (status, err) == (0, "") and told.startswith(f"{n} ") and out in told
        archive = np.load(f"{command}.npz")["images"]
        assert archive.shape == (n, 20, 20, 1) and archive.dtype == np.uint8
        files = sorted((tmp_path / command).iterdir())
        assert [file.name for file in files] == [f"{k:04d}.png" for k in range(n)]
        assert all(np.array_equal(Image.open(f), x[..., 0]) for f, x in zip(files, archive))
        assert Image.open(f"{command}.jpg").format == "JPEG"
        assert Image.open(f"{command}.jpg").size == Image.open(f"{command}.png").size
    # What was drawn can be learned from.
    assert genbook("sample", "run", "-n", 80, "--out", "many.npz")[0] == 0
    again = ("--smoke", "--set", "epochs=1", "--set", "batch_size=16", "--images", "many.npz")
    assert genbook("train", "vae-svhn", *again)[0] == 0


def test_on_arcs_latents_keep_their_length_and_on_lines_they_do_not(genbook, pictures, monkeypatch):
    arguments = ("--smoke", "--set", "epochs=1", "--images", pictures / "loose", "--side", 8)
    assert genbook("train", "vae-bmnist", *arguments, "--out", "run")[0] == 0
    seen = []
    family = families.family("vae")
    watched = dataclasses.replace(
        family, decode=lambda *given: seen.append(given[2]) or family.decode(*given)
    )
    monkeypatch.setattr(families, "family_of", lambda run: watched)
    for extra, kept in (((), True), (("--straight",), False)):
        seen.clear()
        assert (
            genbook("interpolate", "run", "--through", 2, "-n", 5, *extra, "--out", f"{kept}.png")[
                0
            ]
            == 0
        )
        lengths = seen[0].norm(dim=1)
        assert (lengths[2] > 0.9 * lengths[[0, 4]].min()) == kept


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("sample run --out x.bmp", "must end in one of .png, .jpg, .jpeg, .webp, .npz"),
        ("interpolate run --out x.gif", "must end in one of"),
        ("sample run --out full", "is a folder with other things in it"),
        ("interpolate run --through 1", "--through"),
        ("interpolate run -n 1", "-n"),
        ("interpolate nothing", "no run 'nothing'"),
        ("interpolate judge", "has no images between latents: a classifier names images"),
    ],
)
def test_what_cannot_be_drawn_is_one_sentence(genbook, tmp_path, arguments, told, root):
    shutil.copytree(root / "runs" / "vae-mlp-z2", tmp_path / "runs" / "run")
    shutil.copytree(root / "runs" / "svhn-classifier", tmp_path / "runs" / "judge")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    status, out, err = genbook(*arguments.split())
    assert (status, out) == (2, "") and err.startswith("error: ") and told in err
    assert len(err.splitlines()) == 1


def test_several_recipes_learn_from_the_same_pictures(genbook, pictures, tmp_path):
    several = ("vae-mlp-z2", "vae-mlp-z20")
    shared = ("--smoke", "--set", "epochs=1", "--images", pictures / "loose", "--side", 9)
    status, _, err = genbook("train", *several, *shared)
    assert status == 0, err
    for name in several:
        path = tmp_path / "runs" / f"{name}+smoke+epochs=1+images=loose+side=9" / "run.json"
        assert json.loads(path.read_text())["recipe"]["data"].startswith("bits:1x9:")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("ddpm-svhn --side 36", "the U-Net needs a side that 8 divides, got 36"),
        ("wgan-svhn --side 48", "the critic needs a side that is a power of two from 8 on, got 48"),
        ("vae-svhn --side 40", "the convolutions need a side that 16 divides, got 40"),
        ("vae-bmnist-best --side 30", "the convolutions need a side that 4 divides, got 30"),
        ("vae-bmnist --set network=conv --side 30", "a side that 4 divides, got 30"),
        ("dssl-cifar10 --side 30", "tiles must divide the side of 30 pixels, got 4"),
        ("vae-bmnist --side 3", "--side"),
        ("svhn-classifier", "does not learn from other images than those of a data set"),
        ("comparison-mnist", "does not learn from other images than those of a data set"),
        ("relatives-cifar10-rates", "does not learn from other images"),
        ("vae-bmnist --images nowhere", "no nowhere is there"),
        ("gan-mnist --smoke --images few", "9 pictures make 9 different squares, too few"),
        ("simsiam-cifar10 --smoke --set k=99", "k must be from 1 to the "),
        ("simsiam-cifar10 --smoke --set batch_size=4096", "batch_size is 4096"),
        ("simsiam-cifar10 --smoke --images one", "are all the same, and tell nothing"),
        ("vae-bmnist --set data=images:1x28:/tmp", "vae-bmnist needs bits"),
    ],
)
def test_what_cannot_be_is_one_sentence_before_training(
    genbook, pictures, tmp_path, arguments, told
):
    shutil.copytree(pictures / "named" / "a", tmp_path / "one" / "a")
    shutil.copytree(pictures / "named" / "b", tmp_path / "one" / "a" / "b")
    (tmp_path / "few").mkdir()
    for k in range(9):
        shutil.copy(pictures / "loose" / f"{k}.png", tmp_path / "few")
    given = arguments.split()
    place = [] if "--images" in given else ["--images", pictures / "named"]
    status, out, err = genbook("train", *given, *place)
    assert (status, out) == (2, "") and len(err.splitlines()) == 1
    assert err.startswith("error: ") and told in err


def test_a_side_without_images_is_refused(genbook):
    status, _, err = genbook("train", "vae-bmnist", "--side", 32)
    assert status == 2 and "--side is that of the reader's own images: it needs --images" in err


def test_models_of_the_book_have_the_shape_of_their_data():
    for name, shape in (("vae-svhn", (3, 32, 32)), ("ddpm-svhn", (3, 32, 32))):
        assert families.all_recipes()[name][1].model().shape == shape
    for name in ("vae-bmnist", "gan-mnist"):
        with torch.no_grad():
            assert families.all_recipes()[name][1].model().eval().sample(2).shape == (2, 1, 28, 28)
