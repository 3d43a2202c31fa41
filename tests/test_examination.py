"""The entrance examination of judges: its ladders, the judges, bad input, the record."""

import dataclasses

import pytest
import torch

from genbook.judges import examination
from genbook.judges.examination import (
    LADDERS,
    RECIPES,
    blurred,
    distance_of,
    judge,
    ladders,
    laplacian_pyramid,
    line_distance,
    noisy,
    principal_axes,
    rises,
    seen,
    without,
)
from genbook.measures import interval_of
from genbook.runs import Run


@pytest.fixture(scope="module")
def record(root):
    return Run(root / "runs" / "examination-svhn")


@pytest.fixture(scope="module")
def images():
    return torch.randint(256, (60, 3, 32, 32), dtype=torch.uint8)


def test_the_record_is_of_the_recipe(record):
    recipe, found = examination.build(record)
    assert recipe == RECIPES["examination-svhn"]
    n, most = recipe.samples, int(found["rows.classes"].max())
    for name in recipe.judges:
        assert len(found[f"{name}.known"]) == n and len(found[f"{name}.pool"]) == most + 1


def test_verdicts_follow_from_the_rises(record):
    recipe = record.recipe
    for name in recipe["judges"]:
        passed = 0
        for ladder in LADDERS:
            rungs = range(1, len(recipe[ladder]) + 1)
            climbed = all(record.figure(f"{name}_{ladder}_{k}_rise_low") > 0 for k in rungs)
            assert record.figure(f"{name}_{ladder}_passed") == climbed
            passed += climbed
            before = [f"{name}_honest", *(f"{name}_{ladder}_{k}" for k in rungs)]
            for k in rungs:
                rise = record.figure(before[k]) - record.figure(before[k - 1])
                assert record.figure(f"{name}_{ladder}_{k}_rise") == pytest.approx(rise, abs=1e-9)
        assert record.figure(f"{name}_passed") == passed


def test_a_ladder_of_the_record_is_computed_again_from_what_is_kept(record):
    recipe, found = examination.build(record)
    for name, ladder in (("patches", "blur"), ("svhn-classifier", "repeats")):
        known = found[f"{name}.known"].float()
        climb = seen(found, name, ladder, 4)[:2]
        halved = [distance_of(name)(x, known, recipe.resamples, recipe.seed) for x in climb]
        assert record.figure(f"{name}_{ladder}_1") == pytest.approx(halved[1][0], rel=1e-6)
        ends = rises(halved)[0]
        for what, end in zip(("", "_low", "_high"), ends):
            assert record.figure(f"{name}_{ladder}_1_rise{what}") == pytest.approx(end, abs=1e-6)


def test_the_same_set_rises_by_nothing():
    x, y = torch.randn(2, 40, 3)
    one = distance_of("spectra")(x, y, 20, 3)
    assert rises([one, one]) == [(0, 0, 0)]
    assert interval_of(*one)[1] < interval_of(*one)[2]
    with pytest.raises(ValueError, match="at least 2 rungs, got 1"):
        rises([one])


def test_spoiled_images_are_levels_and_the_first_ones_are_kept(images):
    before = images.clone()
    for spoiled in (blurred(images, 3), noisy(images, 0.3)):
        assert spoiled.dtype == torch.uint8 and spoiled.shape == images.shape
    assert images.equal(before)
    assert noisy(images, 0.3).equal(noisy(images, 0.3))
    assert not noisy(images, 0.3, seed=1).equal(noisy(images, 0.3))


def test_too_few_images_are_refused(images):
    recipe = dataclasses.replace(RECIPES["examination-svhn"].smoke(), samples=31)
    labels = torch.arange(60) % 10
    with pytest.raises(ValueError, match="62 test images are asked for, but there are 60"):
        ladders(recipe, images, labels)
    with pytest.raises(ValueError, match="are to be replaced, by 0 spare ones"):
        without(labels, labels[:0], 3)


def test_bad_arguments_are_refused(images):
    for levels in (0, 7):
        with pytest.raises(ValueError, match=f"levels must be at least 1.*got {levels}"):
            laplacian_pyramid(torch.zeros(1, 3, 32, 32), levels)
    with pytest.raises(ValueError, match="samples of one shape"):
        line_distance(torch.zeros(3, 2), torch.zeros(4, 2))
    for k in (0, 5):
        with pytest.raises(ValueError, match=r"k must lie in \[1, 4\]"):
            principal_axes(torch.randn(5, 8), k)
    with pytest.raises(ValueError, match="no run 'nobody'"):
        judge("nobody", images)


def test_a_networks_features_without_labels_are_on_its_axes(images):
    looked = judge("simsiam-cifar10", images, axes=8).look(images)
    assert looked.shape == (60, 8)
    assert looked.mean(0).abs().max() < 1e-4  # centred on what the axes are from
    assert looked.square().mean().item() == pytest.approx(59 / 60, rel=1e-3)
    assert (looked.var(0).diff() < 0).all()  # not whitened
