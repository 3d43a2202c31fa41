"""Wrong data is met before training, in one line: every family says what it needs, and learns from all that is so."""

import dataclasses
import re
import typing

import pytest
import torch

from genbook import families, fields, runs
from genbook.data import DATASETS, Split, Splits
from genbook.data.sets import Needs
from genbook.families import FAMILIES, Job, family
from genbook.vae.binarised_mnist import RECIPES
from genbook.vae.elbo import elbo_terms

IMAGES = 150  # of each split
WITH_DATA = [name for name in FAMILIES if not family(name).drawn]


def kind_of(data):
    """The shape, the levels and the labels of a data set's images."""
    found = DATASETS[data]
    return found.shape, found.white, found.classes


KINDS = {kind_of(name): name for name in reversed(DATASETS)}  # no two are alike


class AsToys(Splits):
    """A data set of which only its shape, its levels and whether it has labels are true; the images are toys."""

    def __getitem__(self, split):
        toys = "toy_digits" if self.dataset.shape[0] == 1 else "toy_house_numbers"
        images, labels = Splits(toys)[split]
        images = images[:IMAGES] * (self.white // DATASETS[toys].white)
        return Split(images, None if self.dataset.classes is None else labels[:IMAGES])

    def provenance(self):
        return {**Splits("toy_digits").provenance(), "name": self.name}


def smallest(name, data):
    """The rehearsal of a family's first recipe, on a data set, or on its own toys."""
    recipe = next(iter(family(name).recipes.values())).smoke()
    data = data or recipe.data
    once = {"epochs": 1} if hasattr(recipe, "epochs") else {}
    return dataclasses.replace(recipe, data=data, **once)


def needs_of(name) -> Needs:
    kind = fields.field_types(family(name).recipe)["data"]
    (found,) = (rule for rule in typing.get_args(kind)[1:] if isinstance(rule, Needs))
    return found


@pytest.mark.parametrize("name", WITH_DATA)
def test_every_family_says_what_its_data_must_be(name):
    wanted = needs_of(name)
    assert wanted.names and set(wanted.names) == {
        each.name for each in DATASETS.values() if not wanted.misfit(each)
    }


@pytest.mark.parametrize("data", KINDS.values())
@pytest.mark.parametrize("name", WITH_DATA)
def test_a_family_learns_from_a_data_set_or_says_in_a_sentence_why_not(
    name, data, tmp_path, monkeypatch
):
    """Where data are like those of its rehearsal, test_families.py has trained it."""
    monkeypatch.setattr(families, "Splits", AsToys)
    try:
        recipe = smallest(name, data)
        if kind_of(data) == kind_of(smallest(name, None).data):
            return
        run = family(name).train(recipe, Job(tmp_path / "run", device="cpu", progress=False))
    except ValueError as error:
        assert re.fullmatch(rf"\S+ needs .*; {data} has .*", str(error)), error
        assert not (tmp_path / "run.unfinished" / "metrics.csv").exists()
    else:
        assert runs.validate(run.path, families.recipe_fields()) == []
        assert run.record["data"]["name"] == data


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("vae-bmnist", "mnist", "vae-bmnist needs bits; mnist has levels from 0 to 255. "),
        ("iwae-bmnist", "svhn", "iwae-bmnist needs bits and images of 1 x 28 x 28; svhn has "),
        ("gan-mnist", "binarized_mnist", "gan-mnist needs labels; binarized_mnist has no labels. "),
        ("ddpm-svhn", "mnist", "ddpm-svhn needs images of 3 x 32 x 32; mnist has images of 1 x "),
        ("vae-bmnist", "minst", "data must be one of binarized_mnist, toy_digits"),
    ],
)
def test_the_sentence_names_the_recipe_the_data_and_what_fits(name, data, told):
    from genbook import cli, recipes

    _, recipe = cli.find_recipe(name)
    with pytest.raises(ValueError) as error:
        recipes.override(recipe, [f"data={data}"])
    assert str(error.value).startswith(told)
    with pytest.raises(ValueError) as error:
        dataclasses.replace(recipe, data=data)
    assert told.removeprefix(f"{name} ") in str(error.value)


def test_a_bernoulli_vae_takes_bits_of_any_type_and_no_levels():
    torch.manual_seed(0)
    model = RECIPES["vae-bmnist"].smoke().model()
    bits = torch.randint(2, (4, 1, 28, 28), dtype=torch.uint8)
    for x in (bits, bits.float(), bits.long(), bits.half()):
        assert all(term.isfinite().all() for term in elbo_terms(model, x))
    for x in (bits * 255, bits.float() * 255, 2.0 * bits - 1):
        with pytest.raises(ValueError, match=r"x must lie in \[0, 1\]"):
            elbo_terms(model, x)
