"""Three hundred pictures as they lie in a folder go the whole way: train, sample, interpolate, quality, export."""

import dataclasses
import json

import numpy as np
import pytest
from PIL import Image

from genbook import cli, families

BUDGET = {  # of each recipe that is rehearsed, fields smaller than a rehearsal's
    "vae-bmnist": {"epochs": 1, "eval_samples": 20, "eval_images": 10},
    "vae-svhn": {"epochs": 1, "eval_samples": 20, "eval_images": 10},
    "gan-mnist": {"epochs": 1, "eval_samples": 50},
    "wgan-svhn": {"epochs": 1, "eval_samples": 50, "width": 4, "batch_size": 16},
    "ddpm-svhn": {"epochs": 1, "eval_images": 10, "timesteps": 12, "sampler_steps": 3},
    "simsiam-cifar10": {"epochs": 1, "batch_size": 32, "k": 5, "monitored": 16},
}


def store(picture, path, kind):
    """Store a picture in one of eight ways."""
    if kind == "grey":
        picture.convert("L").save(path.with_suffix(".jpg"))
    elif kind == "16-bit":
        Image.fromarray(np.asarray(picture.convert("L")).astype(np.uint16) * 257).save(
            path.with_suffix(".png")
        )
    elif kind == "palette":
        picture.quantize(32).save(path.with_suffix(".png"))
    elif kind == "transparent":
        clear = picture.convert("RGBA")
        clear.putalpha(Image.new("L", picture.size, 200))
        clear.save(path.with_suffix(".png"))
    elif kind == "turned":
        turned = picture.transpose(Image.Transpose.ROTATE_90)
        turned.getexif()[0x0112] = 6
        turned.save(path.with_suffix(".jpeg"), exif=turned.getexif())
    else:
        picture.save(path.with_suffix(f".{kind}"))


KINDS = ("png", "jpg", "webp", "grey", "16-bit", "palette", "transparent", "turned")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three hundred pictures of all kinds in two subfolders, a broken file and a tiny one."""
    place = tmp_path_factory.mktemp("own") / "pictures"
    rng = np.random.default_rng(0)
    for k in range(300):
        patches = np.kron(rng.integers(0, 256, (2, 2, 3)), np.ones((30, 30, 1)))
        noise = rng.integers(-40, 40, patches.shape)
        picture = Image.fromarray((patches + noise).clip(0, 255).astype(np.uint8))
        folder = place / ("cats" if k % 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        size = (int(rng.integers(33, 60)), int(rng.integers(33, 60)))
        store(picture.resize(size), folder / f"{k:03d}", KINDS[k // 2 % len(KINDS)])
    (place / "cats" / "broken.png").write_bytes(b"\x89PNG and no more")
    Image.new("RGB", (3, 3)).save(place / "dogs" / "tiny.png")
    return place


@pytest.fixture
def genbook(tmp_path, monkeypatch, capsys):
    """Run a command in this process, in a folder of its own: its standard output, and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def run(*arguments, status=0):
        found = cli.main(list(map(str, arguments)))
        out, err = capsys.readouterr()
        assert found == status, f"{arguments}: {out}{err}"
        return out, err

    return run


def trained(genbook, name, pictures, side, out):
    """Rehearse a recipe on the pictures."""
    known = {field.name for field in dataclasses.fields(families.all_recipes()[name][1])}
    changes = [f"--set={key}={value}" for key, value in BUDGET[name].items() if key in known]
    arguments = ("--smoke", *changes, "--images", pictures, "--side", side, "--out", out)
    _, err = genbook("train", name, *arguments)
    assert "left out 2 of 302 pictures" in err
    assert "cats/broken.png (" in err and "dogs/tiny.png (it has 3 by 3 pixels" in err
    record = json.loads((out / "run.json").read_text())
    assert record["data"]["splits"]["all"]["size"] == 300
    assert record["data"]["note"] == "labels cats, dogs; left out 2 of 302"


@pytest.mark.parametrize(
    ("name", "side", "channels"),
    [
        ("vae-bmnist", 20, 1),
        ("vae-svhn", 16, 3),
        ("gan-mnist", 24, 1),
        ("wgan-svhn", 32, 3),
        ("ddpm-svhn", 16, 3),
    ],
)
def test_they_go_from_training_to_a_judge(genbook, pictures, tmp_path, name, side, channels):
    trained(genbook, name, pictures, side, tmp_path / "run")
    genbook("sample", "run", "-n", 40, "--out", "samples.npz")
    genbook("sample", "run", "-n", 40, "--out", "samples")
    genbook("interpolate", "run", "--through", 2, "-n", 3, "--out", "between.png")
    samples = np.load("samples.npz")["images"]
    assert samples.shape == (40, side, side, channels)
    assert Image.open("between.png").size == (3 * side + 2, side)
    found = json.loads(genbook("quality", "run", pictures, "-n", 40, "--json")[0])
    assert found["n"] == 40 and found["judge"] == "patches" and found["told_apart"]
    figures = {row["figure"]: row for row in found["figures"]}
    assert list(figures) == ["patches", "kernel", "Fréchet", "precision", "recall", "detail"]
    for row in figures.values():
        assert all(np.isfinite([row[key] for key in ("value", "low", "high", "floor")]))
    assert figures["patches"]["value"] > 1.3 * figures["patches"]["floor"]
    shape = f"{channels} x {side} x {side}"
    assert any(note.startswith(f"All images were brought to {shape}") for note in found["notes"])
    genbook("export", "run")
    told = json.loads((tmp_path / "run-export" / "export.json").read_text())
    assert all(each["difference"] < 1e-4 for each in told["networks"].values())
    shapes = [row["shape"] for each in told["networks"].values() for row in each["inputs"]]
    assert ["batch", channels, side, side] in shapes
    # What was drawn onto the disk is what the run draws, and a judge says the same of it.
    same = json.loads(genbook("quality", "samples", "run", "-n", 20, "--json")[0])
    assert not same["told_apart"]


def test_a_network_that_learned_from_them_may_judge(genbook, pictures, tmp_path):
    trained(genbook, "vae-svhn", pictures, 16, tmp_path / "run")
    trained(genbook, "simsiam-cifar10", pictures, 32, tmp_path / "judge")
    out, _ = genbook("quality", "run", pictures, "--judge", "judge", "-n", 30)
    assert (
        out.splitlines()[1].startswith("kernel\t") and "Judge: judge, trained on images:3x32" in out
    )
    assert "All images were brought to 3 x 16 x 16, and for judge to 3 x 32 x 32." in out
    assert "patches and spectra need no training" in out
