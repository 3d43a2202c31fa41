"""SimSiam and its relatives beyond what their chapters show: resume, what a record keeps, who may build it."""

import dataclasses
import json

import pytest
import torch

from genbook import runs, training
from genbook.data import Split, Splits, import_torchvision
from genbook.families import Job, all_recipes
from genbook.selfsupervised import judging, pretraining, relatives, representations, simsiam
from genbook.selfsupervised.encoder import resnet18
from genbook.selfsupervised.judging import measure
from genbook.selfsupervised.simsiam import RECIPES, SimSiam
from genbook.selfsupervised.views import Augmentation


@pytest.fixture(autouse=True)
def few_images(monkeypatch):
    """The first 200 images of each split, so that several runs take seconds."""
    whole = Splits.__getitem__
    monkeypatch.setattr(
        Splits, "__getitem__", lambda self, name: Split(*(part[:200] for part in whole(self, name)))
    )


def tiny(recipe):
    """A smoke recipe cut down further."""
    return dataclasses.replace(
        recipe.smoke(), dim=32, batch_size=40, precision="fp32", monitored=50
    )


def quiet(folder):
    """A job on the CPU that says nothing."""
    return Job(folder, device="cpu", progress=False)


def test_a_slow_teacher_resumes_where_it_was(tmp_path, monkeypatch):
    """BYOL interrupted in the middle of the epoch and started again: the same record, bit for bit."""
    recipe = tiny(relatives.RECIPES["byol-cifar10"])
    whole = relatives.train(recipe, quiet(tmp_path / "whole"))
    kind, fit, calls = type(recipe.model()), training.fit, 0
    loss_of = kind.training_loss

    def interrupted(model, x1, x2):
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return loss_of(model, x1, x2)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "training_loss", interrupted)
        patch.setattr(training, "fit", lambda *a, **k: fit(*a, **{**k, "checkpoint_seconds": 0}))
        with pytest.raises(KeyboardInterrupt):
            relatives.train(recipe, quiet(tmp_path / "parts"))
    assert (tmp_path / "parts.unfinished" / "checkpoint.pt").exists()
    parts = relatives.train(recipe, quiet(tmp_path / "parts"))
    assert not (tmp_path / "parts.unfinished").exists()
    assert parts.weights.read_bytes() == whole.weights.read_bytes()
    assert parts.record["metrics"] == whole.record["metrics"]
    pictures = {"neighbours.png"} | ({"views.png"} if recipe.keep_weights else set())
    assert {path.name for path in whole.samples} == pictures
    again = relatives.evaluate(parts)
    for key, metric in parts.record["metrics"].items():
        # of 200 images one may fall on the other side
        assert abs(again[key]["value"] - metric["value"]) <= max(metric["tolerance"], 0.011), key


def test_runs_without_weights_keep_what_figures_come_from(tmp_path):
    recipe = tiny(RECIPES["simsiam-cifar10-no-stopgrad"])
    run = simsiam.train(recipe, quiet(tmp_path / recipe.name))
    assert run.weights.name == "features.safetensors"
    assert not (run.path / "model.safetensors").exists()
    assert simsiam.evaluate(run) == json.loads(json.dumps(run.record["metrics"]))
    built, found = simsiam.build(run)
    assert built == recipe and len(found["test_answers"]) == 200
    with pytest.raises(ValueError, match="draws no images: it learns features"):
        simsiam.sample(run, 2)


def test_runs_with_weights_keep_what_was_measured_on_them_too(tmp_path):
    """On the weights as they are stored, in half precision: a model that is built from them finds the same."""
    recipe = dataclasses.replace(tiny(RECIPES["simsiam-cifar10-no-stopgrad"]), keep_weights=True)
    run = simsiam.train(recipe, quiet(tmp_path / recipe.name))
    built, model = simsiam.build(run)
    assert built == recipe and not model.training and not model.stop_gradient
    kept = runs.load_weights(run.path / "features.safetensors")
    found = measure(recipe, model, Splits(recipe.data))
    assert kept.keys() == found.keys()
    assert (kept["neighbours"] == found["neighbours"]).double().mean() > 0.9  # but for near ties
    torch.testing.assert_close(kept["lengths"], found["lengths"], rtol=1e-3, atol=1e-4)


def test_a_run_may_learn_from_the_validation_images_too(tmp_path, monkeypatch):
    """Then it is asked about test images alone, after each epoch as well, and finds neighbours among all."""
    recipe = dataclasses.replace(tiny(RECIPES["simsiam-cifar10-no-stopgrad"]), images="train+valid")
    seen, fit = [], judging.fit_recipe
    monkeypatch.setattr(
        judging, "fit_recipe", lambda *args, **more: seen.append(args[3]) or fit(*args, **more)
    )
    run = simsiam.train(recipe, quiet(tmp_path / recipe.name))
    splits = Splits(recipe.data)
    everything = torch.cat([splits.train.images, splits.valid.images])
    assert len(seen) == 1 and torch.equal(seen[0], everything)
    metrics, columns = run.record["metrics"], run.metrics
    assert "valid_knn" not in metrics and metrics["test_knn"]["n"] == 200
    assert metrics["test_knn_projection"]["value"] == metrics["test_knn_course"]["value"]
    assert {"test_knn", "test_spread"} <= columns.keys() and "valid_knn" not in columns
    with pytest.raises(ValueError, match=r"images must be 'train' or 'train\+valid', got 'all'"):
        pretraining.learned_from(dataclasses.replace(recipe, images="all"), splits)


def test_each_measure_asks_its_own_neighbours():
    """Features that tell the class one way and projections that tell it another: who is asked among which is seen in the answers."""
    recipe = dataclasses.replace(tiny(RECIPES["simsiam-cifar10"]), k=1)
    one, other = torch.eye(8)[:4], torch.eye(8)[4:]
    known = one[[0, 1]], one[[1, 0]]  # features and projections of two images learned from
    held = other[[0]], one[[2]]  # of a validation image
    asked = one[[0, 1]], torch.stack([one[0], one[2] + 0.1 * one[0]])
    found = judging.answers_of(recipe, known, torch.tensor([3, 4]), held, torch.tensor([5]), asked)
    told = {name: answers.tolist() for name, answers in found.items() if name != "valid_answers"}
    assert told == {
        "test_answers": [3, 4],
        "test_projection_answers": [4, 4],
        "test_course_answers": [4, 5],
    }
    assert found["valid_answers"].shape == (1,)


def test_runs_see_the_same_images_and_views(tmp_path, monkeypatch):
    """The ablations differ in one field, and in nothing that chance decides."""
    seen = {}
    for name in (
        "simsiam-cifar10",
        "simsiam-cifar10-no-stopgrad",
        "simsiam-cifar10-identity-predictor",
    ):
        forward = SimSiam.forward

        def noted(model, x1, x2, name=name, forward=forward):
            seen.setdefault(name, []).append(x1.detach().clone())
            return forward(model, x1, x2)

        with monkeypatch.context() as patch:
            patch.setattr(SimSiam, "forward", noted)
            simsiam.train(tiny(RECIPES[name]), quiet(tmp_path / name))
    first, *others = seen.values()
    assert len(first) == 5
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


def test_recipes_are_the_course_s():
    recipe = RECIPES["simsiam-cifar10"]
    assert (recipe.dim, recipe.pred_dim, recipe.weight_decay, recipe.k, recipe.temperature) == (
        2048,
        512,
        5e-4,
        200,
        0.1,
    )
    assert RECIPES["simsiam-cifar10-projector-4096"].dim == 4096
    model = recipe.model()
    shapes = [
        tuple(layer.weight.shape)
        for layer in model.encoder.fc
        if isinstance(layer, torch.nn.Linear)
    ]
    assert shapes == [(512, 512), (512, 512), (2048, 512)] and not model.encoder.fc[-1].affine
    shapes = [
        tuple(layer.weight.shape) for layer in model.predictor if isinstance(layer, torch.nn.Linear)
    ]
    assert shapes == [(512, 2048), (2048, 512)]
    names = set(RECIPES) | set(relatives.RECIPES)
    assert names <= set(all_recipes())


def test_a_plain_torchvision_encoder_will_do():
    """`base_encoder` is any function that makes a ResNet with a last layer `fc`."""
    model = SimSiam(import_torchvision().models.resnet18, dim=16, pred_dim=4)
    p1, p2, z1, z2 = model(*torch.randn(2, 4, 3, 32, 32))
    assert p1.shape == z2.shape == (4, 16) and not z1.requires_grad
    assert -1 <= model.loss(p1, p2, z1, z2).item() <= 1


def test_the_cifar_stem_sees_more():
    """Four times four places are left at the end with it, and one with ImageNet's."""
    for stem, side in (("imagenet", 1), ("cifar", 4)):
        net, seen = resnet18(stem=stem), []
        net.layer4.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output.shape)
        )
        net.eval()(torch.randn(1, 3, 32, 32))
        assert seen[0] == (1, 512, side, side)


def test_k_larger_than_the_bank_is_refused(tmp_path):
    recipe = dataclasses.replace(tiny(RECIPES["simsiam-cifar10"]), k=201)
    with pytest.raises(ValueError, match="k must be from 1 to the 200 images"):
        simsiam.train(recipe, quiet(tmp_path))


def test_the_size_of_parts_changes_no_view_and_no_feature(monkeypatch):
    """A card takes many images at once; views are drawn for as many together as on a processor."""
    recipe = RECIPES["simsiam-cifar10"].smoke()
    images = torch.randint(0, 256, (520, 3, 32, 32), dtype=torch.uint8)
    model = recipe.model().eval()
    found = []
    for size in (250, 1000):
        monkeypatch.setattr(pretraining, "AT_ONCE", {"cpu": size})
        z1, z2 = pretraining.views_of(model, images, Augmentation(), seed=4)
        found.append((z1, z2, *pretraining.outputs(model, images)))
    for small, large in zip(*found, strict=True):
        torch.testing.assert_close(small, large, rtol=1e-4, atol=1e-5)
    whole = model.encoder.fc
    features = pretraining.features_of(model, images)
    assert torch.equal(features, found[1][2]) and model.encoder.fc is whole
    with torch.no_grad():
        torch.testing.assert_close(whole(features), found[1][3], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("n", "d"), [(30, 50), (50, 30), (40, 40)])
def test_the_spectrum_is_that_of_the_covariance(n, d):
    """By the smaller of two matrices, with zeros for the axes along which nothing varies."""
    z = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    u = torch.nn.functional.normalize(z.double(), dim=1)
    wanted = torch.linalg.eigvalsh(u.T.cov(correction=0)).flip(0).clamp(min=0).float()
    found = representations.spectrum(z)
    assert found.shape == (d,)
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
