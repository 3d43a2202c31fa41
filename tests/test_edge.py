"""What enters the package is looked at: fields of recipes, arguments of functions, data, and places to write to."""

import dataclasses
import errno
import http.server
import io
import math
import os
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn

from genbook import cli, descent, families, images, measures, recipes, runs, viz
from genbook.data import fetching, load, reading
from genbook.diffusion import derivation
from genbook.edge import guarded
from genbook.fields import Checked, check_value, field_types
from genbook.gan import two_lines
from genbook.judges.classifier import calibration
from genbook.likelihoods import log_likelihood_bernoulli_logits
from genbook.results.comparison import chosen
from genbook.selfsupervised import collapse, representations, simsiam, views
from genbook.training import fit
from genbook.vae import binarised_mnist, elbo

RECIPES = families.all_recipes()

# Recipes --------------------------------------------------------------------------------------------------------------

BAD = (
    None,
    "nope\n",
    -1,
    2.5,
    math.nan,
    math.inf,
    10**30,
    True,
    [],
    (),
    (0, -1, math.nan),
    object(),
)


@pytest.mark.parametrize("kind", families.FAMILIES)
def test_every_field_of_every_recipe_is_checked_when_it_is_made(kind):
    """Of twelve values that hardly any field takes each refuses most, in a sentence that names it."""
    recipe = next(iter(families.family(kind).recipes.values()))
    assert isinstance(recipe, Checked)
    for field, of in field_types(type(recipe)).items():
        refused = []
        for value in BAD:
            try:
                check_value(value, of, field)
            except ValueError as error:
                assert str(error).startswith(f"{field} must"), error
                refused.append(value)
        assert len(refused) >= 8, (field, of)
        with pytest.raises(ValueError, match=f"{field} must"):
            dataclasses.replace(recipe, **{field: refused[-1]})


@pytest.mark.parametrize("name", RECIPES)
def test_every_field_of_every_recipe_can_be_given_as_text(name):
    _, recipe = RECIPES[name]
    for each in (recipe, recipe.smoke()):
        for field, kind in field_types(type(each)).items():
            value = getattr(each, field)
            assert recipes.parse_value(recipes.as_text(value), kind, field) == value


@pytest.mark.parametrize(
    "name, setting, told",
    [
        (
            "vae-bmnist",
            "eval_samples=0",
            "eval_samples must be at least 1, got '0'",
        ),
        ("vae-bmnist", "latent=1000000000000", "latent must be at most 65,536"),
        ("vae-bmnist", "data=svhn", "needs bits and images of 1 x 28 x 28; svhn has levels"),
        ("ddpm-svhn-compact", "bound_images=1", "bound_images must be at least 2, got '1'"),
        ("ddpm-svhn-compact", "mults=", "mults must be at least 2 long"),
        ("simsiam-cifar10", "MLP_mode=no_pred", "MLP_mode must be 'no_pred_mlp' or"),
        ("gan-mnist", "betas=0.5,1", "betas must be below 1"),
        ("ddpm-svhn-compact-probes", "samplers=ddim:5,nope:3", "samplers must be one of"),
        ("byol-cifar10", "tiles=3", "tiles must divide the side"),
    ],
)
def test_a_bad_setting_is_refused_before_the_training(name, setting, told, capsys, tmp_path):
    out = tmp_path / "run"
    assert cli.main(["train", name, "--smoke", "--out", str(out), "--set", setting]) == 2
    assert told in capsys.readouterr().err and not out.exists()


@pytest.mark.parametrize("text", ["None", "none", "no_pred_mlp", "fixed_random_init"])
def test_a_mode_of_the_predictor_can_be_set(text):
    found = recipes.override(RECIPES["simsiam-cifar10"][1], [f"MLP_mode={text}"])
    assert found.MLP_mode == (None if text.lower() == "none" else text)


# Functions ------------------------------------------------------------------------------------------------------------

X, NAN = torch.rand(4, 3), torch.full((4, 3), math.nan)
BYTES = torch.randint(0, 256, (20, 1, 4, 4), dtype=torch.uint8)
SIMILAR = simsiam.CosineSimilarity()
SILENT = {  # what was answered, once, with a number like any other
    "target of levels": lambda: log_likelihood_bernoulli_logits(X, 255 * X),
    "negative target": lambda: log_likelihood_bernoulli_logits(X, -X),
    "target of another shape": lambda: log_likelihood_bernoulli_logits(X, X[0]),
    "theta": lambda: two_lines.generator_signal("wasserstein", math.nan, nn.Linear(2, 1), 10),
    "std": lambda: derivation.discretised_nll(0 * X, 0 * X, -1.0),
    "n below 1": lambda: chosen(BYTES, BYTES, BYTES, -1),
    "bytes": lambda: views.normalise(BYTES.expand(-1, 3, -1, -1)),
    "bytes, brighter": lambda: views.adjust_brightness(BYTES.expand(-1, 3, -1, -1), torch.ones(20)),
    "order": lambda: views.jitter(X[:, :, None, None], torch.rand(4, 4), torch.full((4, 4), 9)),
    "side": lambda: views.draw_boxes(2, -1),
    "one for all": lambda: SIMILAR(X[:1], X),
    "noise of one for all": lambda: elbo.reparameterise(X, X, X[0]),
    "units": lambda: elbo.active_units(NAN),
    "starts": lambda: collapse.survives(NAN[0], X[0], 1.0),
    "right of one": lambda: calibration(X[:, 0], X[:1, 0]),
    "changes of one": lambda: measures.total_variation(X[:1], X),
    "shares": lambda: measures.entropy(torch.ones(3)),
    "bank": lambda: representations.knn_votes(NAN, torch.arange(4), X, k=2),
    "queries": lambda: representations.knn_votes(X, torch.arange(4), NAN, k=2),
    "spread of one": lambda: representations.spread(X[:1]),
    "order of none": lambda: descent.epoch_order(-1, 0, 1),
    "progress": lambda: descent.one_cycle(2.0),
    "widths": lambda: binarised_mnist.mlp((3, -1), "elu"),
    "no widths": lambda: binarised_mnist.mlp((), "elu"),
    "gap": lambda: viz.tile(BYTES, 2, -1),
    "no neighbours": lambda: images.nearest(torch.rand(2, 1, 4, 4), BYTES, 0),
    "grey levels": lambda: elbo.elbo_terms(
        binarised_mnist.VAERecipe("x", hidden=(8,), latent=2).model(),
        torch.full((3, 1, 28, 28), 255.0),
    ),
}


@pytest.mark.parametrize("what", SILENT)
def test_what_cannot_be_meant_is_refused(what):
    with pytest.raises(ValueError, match="must|expected"):
        SILENT[what]()


def test_within_a_call_nothing_is_looked_at_again():
    looked = []

    class Seen(type):
        def __instancecheck__(cls, value):
            looked.append(value)
            return True

    class Anything(metaclass=Seen):
        pass

    @guarded
    def inner(x: Anything) -> int:
        return 1

    @guarded
    def outer(x: Anything) -> int:
        return inner(x) + inner(x)

    before = len(looked)
    assert outer(3) == 2 and len(looked) - before <= 2  # beartype may look twice
    assert inner(3) == 1


def test_a_guarded_function_is_a_graph():
    @guarded
    def doubled(x: torch.Tensor) -> torch.Tensor:
        return 2 * x

    compiled = torch.compile(doubled, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), 2 * X)


# fit ------------------------------------------------------------------------------------------------------------------


def squared(model, batch):
    loss = (model(batch) - batch).square().mean()
    return loss, {}


def run(data=X, objective=squared, **more):
    settings = dict(epochs=1, batch_size=2, lr=0.1, device="cpu", progress=False)
    return fit(nn.Linear(3, 3), objective, data, **settings | more)


@pytest.mark.parametrize(
    "more, told",
    [
        (dict(evaluate=lambda m, e: {"epoch": 99}), "evaluate must name its columns otherwise"),
        (dict(evaluate=lambda m, e: {"train_loss": 1.0}), "otherwise than 'train_loss'"),
        (dict(evaluate=lambda m, e: None), "evaluate must return a dict"),
        (dict(evaluate=lambda m, e: {"a": "x"}), "evaluate must return numbers"),
        (dict(on_step=3), "on_step must be"),
        (dict(checkpoint=""), "checkpoint must be a file"),
        (dict(checkpoint=3), "checkpoint must be str or Path"),
        (dict(fingerprint={"a": math.nan}), "fingerprint must hold"),
        (dict(data=torch.tensor(1.0)), "data must"),
        (dict(checkpoint_seconds=math.nan), "checkpoint_seconds"),
    ],
)
def test_fit_refuses_what_it_would_misread(more, told):
    with pytest.raises(ValueError, match=told):
        run(**more)


def test_other_data_of_equal_shape_are_another_run(tmp_path):
    def stopped(model, batch):
        if len(calls) == 1:
            os.kill(os.getpid(), 2)
        calls.append(1)
        return squared(model, batch)

    calls = []
    assert not run(objective=stopped, checkpoint=tmp_path / "c.pt", epochs=2).completed
    with pytest.raises(ValueError, match="belongs to another run"):
        run(data=X + 1, checkpoint=tmp_path / "c.pt", epochs=2)
    assert run(checkpoint=tmp_path / "c.pt", epochs=2).completed


# Data -----------------------------------------------------------------------------------------------------------------


def encoded(side=32):
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (side, side)).save(buffer, "PNG")
    return buffer.getvalue()


def shard(folder, labels, pictures=None):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (folder / "svhn").mkdir(parents=True, exist_ok=True)
    pictures = pictures or [encoded()] * len(labels)
    table = pa.table({"image": [{"bytes": picture} for picture in pictures], "label": labels})
    pq.write_table(table, folder / "svhn" / "test-00000-of-00001.parquet")


@pytest.mark.parametrize(
    "labels", [[0, None, 2], [0.5, 1.9, 2.0], [0.0, math.nan, 2.0], ["1", "2", "3"]]
)
def test_labels_are_whole_numbers_and_all_there(tmp_path, monkeypatch, labels):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard(tmp_path, labels)
    with pytest.raises(reading.DataError, match="column `label`"):
        load("svhn", "test", tmp_path, download=False)


def test_no_bit_of_a_label_in_the_decoded_copy_is_believed(tmp_path, monkeypatch):
    from safetensors.numpy import load_file

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard(tmp_path, [3, 1, 4, 1, 5])
    assert load("svhn", "test", tmp_path, download=False).labels.tolist() == [3, 1, 4, 1, 5]
    (kept,) = (tmp_path / "cache").rglob("*.safetensors")
    assert load_file(kept)["labels"].dtype == np.uint8  # as they are hashed
    content = kept.read_bytes()
    at = content.rindex(bytes([3, 1, 4, 1, 5]))
    for bit in range(8):
        broken = bytearray(content)
        broken[at] ^= 1 << bit
        kept.write_bytes(broken)
        assert load("svhn", "test", tmp_path, download=False).labels.tolist() == [3, 1, 4, 1, 5]


@pytest.mark.parametrize("labels", [np.array([0, 256]), np.array([-1]), np.array([0.5])])
def test_labels_are_hashed_as_they_are(labels):
    with pytest.raises(ValueError, match="labels must be whole numbers from 0 to 255"):
        reading.sha256(np.zeros((1, 1, 1, 1), np.uint8), labels)


def test_the_size_of_a_picture_is_read_before_its_pixels(tmp_path, monkeypatch):
    from PIL import Image

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    shard(tmp_path, [1], [encoded(3000)])
    monkeypatch.setattr(Image.Image, "convert", lambda *a, **k: pytest.fail("was decoded"))
    with pytest.raises(reading.DataError, match="it is 3000x3000, not 32x32"):
        load("svhn", "test", tmp_path, download=False)


class Slow(http.server.BaseHTTPRequestHandler):
    """Servers that never end: in headers, in the body, in what they announce."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        try:
            if "headers" in self.path:
                self.wfile.write(b"HTTP/1.1 200 OK\r\n")
            elif "announced" in self.path:
                self.send_response(200)
                self.send_header("Content-Length", str(10**15))
                self.end_headers()
            else:
                self.send_response(200)
                self.end_headers()
            while True:
                drop = {"headers": b"X: y\r\n", "drops": b"0 "}
                kind = next((drop[k] for k in drop if k in self.path), b"0 " * 50_000)
                self.wfile.write(kind)
                self.wfile.flush()
                time.sleep(0.05 if len(kind) < 10 else 0)
        except OSError:
            pass


@pytest.mark.parametrize("way, told", [
    ("headers", "timed out"), ("drops", "timed out"), ("announced", "announces"), ("endless", "sends more"),
])  # fmt: skip
def test_every_download_ends(way, told, tmp_path, monkeypatch):
    monkeypatch.setattr(fetching, "_TIMEOUT", 0.6)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Slow) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(OSError, match=told):
            url = f"http://127.0.0.1:{server.server_port}/{way}"
            fetching._download(url, tmp_path / "file", most=1_000_000)
        server.shutdown()
    assert not (tmp_path / "file").exists() or (tmp_path / "file").stat().st_size <= 1_000_000


# Places to write to ---------------------------------------------------------------------------------------------------


def test_a_link_is_followed_and_a_file_keeps_its_permissions(tmp_path):
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_text("old", encoding="utf-8")
    real.chmod(0o600)
    link.symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    runs.write_atomic(link, "one")
    runs.write_atomic(tmp_path / "dangling", "two")
    assert (
        link.is_symlink()
        and real.read_text("utf-8") == "one"
        and real.stat().st_mode & 0o777 == 0o600
    )
    assert (tmp_path / "new").read_text("utf-8") == "two" and (tmp_path / "dangling").is_symlink()


def test_what_is_no_regular_file_is_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "to-a-device").symlink_to("/dev/null")
    for name in ("pipe", "to-a-device", "."):
        with pytest.raises(OSError, match="is no regular file"):
            runs.write_atomic(tmp_path / name, "x")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["pipe", "to-a-device"]


def test_a_full_disk_is_told_with_the_file(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left on device: '.*a.txt'"):
        runs.write_atomic(tmp_path / "a.txt", "x")
    assert list(tmp_path.iterdir()) == []
