"""Models leave Python as graphs that compute the same, for batches of any size."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from genbook import cli, exporting, families, runs
from genbook.families import Job

KINDS = (  # one of each whose networks are of their own kind
    "vae-bmnist", "vae-bmnist-best", "vae-svhn-sigma", "gan-mnist", "wgan-svhn", "ddpm-toy",
    "simsiam-cifar10", "svhn-classifier",
)  # fmt: skip


def untrained(name):
    """A rehearsal's parts, with weights by chance and small networks."""
    family, recipe = families.all_recipes()[name]
    recipe, smaller = recipe.smoke(), {"dim": 8, "mults": (1, 2), "width": 8, "hidden": (16, 16)}
    named = {field.name for field in dataclasses.fields(recipe)} & smaller.keys()
    recipe = dataclasses.replace(recipe, **{key: smaller[key] for key in named})
    torch.manual_seed(0)
    kept = recipe.model().eval()
    if family.name == "gan":
        from genbook.gan.minimax import Played

        kept = Played(kept, torch.nn.Identity())
    return family.parts(recipe, kept)


def answers(compute, inputs):
    with torch.no_grad():
        found = compute(*inputs)
    return found if isinstance(found, tuple) else (found,)


@pytest.mark.parametrize("name", KINDS)
def test_a_graph_takes_batches_of_any_size(name):
    for part in untrained(name).values():
        graph = exporting.traced(part).module()
        for n in (1, 2, 5):
            inputs = exporting.drawn(part, n, seed=n)
            here = answers(lambda *x: part.compute(part.model, *x), inputs)
            there = answers(graph, inputs)
            assert len(here) == len(there) == len(part.outputs)
            for a, b in zip(here, there):
                assert a.shape[0] == n
                torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vae-svhn-sigma", "ddpm-toy"])
def test_onnx_computes_the_same(name):
    for part in untrained(name).values():
        content = exporting.as_onnx(part)
        assert max(exporting.difference(part, content, n) for n in (1, 3)) < 1e-5


def test_every_family_that_keeps_weights_has_networks_to_export():
    without = {name for name in families.FAMILIES if families.family(name).parts is None}
    assert without == {"critics", "probes", "rates", "comparison", "examination"}


def test_another_network_would_be_noticed():
    part = untrained("vae-bmnist")["decoder"]
    content = exporting.as_onnx(part)
    with torch.no_grad():
        part.model.decoder[0][0].weight.mul_(1.05)
    assert exporting.difference(part, content, 3) > exporting.TOLERANCE


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A run of the small VAE on toys."""
    place = tmp_path_factory.mktemp("made") / "run"
    recipe = dataclasses.replace(families.all_recipes()["vae-mlp-z2"][1].smoke(), epochs=1)
    return families.family("vae").train(recipe, Job(place, device="cpu", progress=False))


def test_a_folder_has_all_that_others_need(made, tmp_path):
    import onnxruntime

    files = exporting.export(made, tmp_path / "out")
    assert [each.file for each in files] == ["model.safetensors", "encoder.onnx", "decoder.onnx"]
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "export.json",
        *(each.file for each in files),
    }
    recipe, model = families.family("vae").build(made)
    fresh = recipe.model()
    fresh.load_state_dict(load_file(tmp_path / "out" / "model.safetensors"))
    z = torch.randn(7, 2)
    images = model.decode(z).sigmoid().detach()
    assert torch.equal(fresh.decode(z).sigmoid().detach(), images)
    told = json.loads((tmp_path / "out" / "export.json").read_text())
    assert told["run"] == made.name and told["made_from"] == made.record["weights"]
    (given,), (found,) = (told["networks"]["decoder"][side] for side in ("inputs", "outputs"))
    assert given == {"name": "z", "shape": ["batch", 2], "dtype": "float32"}
    session = onnxruntime.InferenceSession(tmp_path / "out" / "decoder.onnx")
    (seen,) = session.run([found["name"]], {"z": z.numpy()})
    for side, of in ((given, session.get_inputs()), (found, session.get_outputs())):
        assert [(each.name, each.shape) for each in of] == [(side["name"], side["shape"])]
    np.testing.assert_allclose(seen, images.numpy(), atol=1e-5)
    assert found["shape"] == ["batch", *seen.shape[1:]]
    assert [each.file for each in exporting.export(made, tmp_path / "out")]  # once more


def test_a_graph_that_differs_is_not_written(made, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "difference", lambda *_: 0.01)
    with pytest.raises(ValueError, match="encoder differs from the network by 0.01 of the largest"):
        exporting.export(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    assert len(exporting.export(made, tmp_path / "out")) == 3
    monkeypatch.setattr(exporting, "difference", lambda *_: 0.01)
    with pytest.raises(ValueError, match="nothing was written"):
        exporting.export(made, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 4  # of the export before


def test_files_of_others_stay(made, tmp_path):
    """Also such as an export could have left, and those beside an earlier export."""
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out" / "mine.safetensors"
    mine.write_bytes(b"mine")
    with pytest.raises(ValueError, match="is a folder with other things in it"):
        exporting.export(made, tmp_path / "out")
    assert mine.read_bytes() == b"mine"
    mine.unlink()
    exporting.export(made, tmp_path / "out")
    exporting.export(made, tmp_path / "out", weights_only=True)
    left = {"model.safetensors", "export.json"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == left
    mine.write_bytes(b"mine")
    (tmp_path / "out" / "export.json").write_text('{"files": ["../out/mine.safetensors", 3]}')
    with pytest.raises(ValueError, match="is a folder with other things in it"):
        exporting.export(made, tmp_path / "out")
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("critics-lines", "critics-lines has no network to export: it keeps what was measured"),
        ("vicreg-cifar10", "has no network to export: it keeps what was measured, not weights"),
    ],
)
def test_a_record_without_weights_says_so(name, told, tmp_path):
    with pytest.raises(ValueError, match=told):
        exporting.export(runs.Run.open(name), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_at_the_command_line(made, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)

    def genbook(*arguments):
        status = cli.main(["export", str(made.path), *arguments])
        return status, *capsys.readouterr()

    status, out, _ = genbook()
    assert status == 0 and len(out.splitlines()) == 4
    assert (tmp_path / f"{made.name}-export" / "export.json").is_file()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    status, out, err = genbook("--out", "full")
    assert (status, out) == (2, "") and "is a folder with other things in it" in err
    (tmp_path / "file").write_text("mine")
    assert genbook("--out", "file")[::2] == (2, "error: --out file is not a folder; name one\n")
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    status, out, err = genbook("--out", "new")
    assert status == 2 and "pip install onnx onnxscript onnxruntime" in err
    assert not (tmp_path / "new").exists()
    status, out, _ = genbook("--out", "new", "--weights-only")
    assert status == 0 and [file.name for file in sorted((tmp_path / "new").iterdir())] == [
        "export.json",
        "model.safetensors",
    ]
