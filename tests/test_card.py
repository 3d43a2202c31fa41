"""A step on a graphics card waits for nobody; and nothing is in float64 where there is none.

No card is needed. The device "meta" has shapes and no values, so whatever asks for a value there fails, as it would wait on a card.
"""

import ast
import contextlib
from pathlib import Path

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from genbook import families
from genbook.diffusion import sampling
from genbook.players import players_of

CARD = torch.device("meta")
PACKAGE = Path(families.__file__).parent
RECIPES = (
    "vae-bmnist",
    "vae-bmnist-mc",
    "iwae-bmnist",
    "vae-svhn",
    "vae-svhn-sigma",
    "gan-mnist",
    "wgan-svhn",
    "ddpm-svhn",
    "simsiam-cifar10",
    "simsiam-cifar10-heavy",
    "dssl-cifar10",
    "byol-cifar10",
    "barlow-twins-cifar10",
    "vicreg-cifar10",
    "simclr-cifar10",
    "svhn-classifier",
)


class NoNumbersFromHere(TorchFunctionMode):
    """Tensors on the card are not made of numbers that lie here: each would be copied, and waited for."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function in (torch.tensor, torch.as_tensor) or "new_tensor" in repr(function)
        found = function(*args, **(kwargs or {}))
        assert not (made and found.device == CARD), f"{function.__name__} of {args}"
        return found


class NothingCrosses(TorchDispatchMode):
    """No operation takes a tensor from here to the card, or wants float64 there."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        given = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        made = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        on_card = [x for x in made if x.device == CARD]
        crossed = [x for x in given if x.device != CARD and x.ndim > 0]
        assert not (on_card and crossed), f"{function} copies to the card"
        assert all(x.dtype != torch.float64 for x in on_card), f"{function} in float64"
        return found


@pytest.fixture
def card(monkeypatch):
    """The recipes, on the card; which knows no autocast of its own, and is asked for none."""
    recipes = families.all_recipes()
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    return {name: recipe for name, (_, recipe) in recipes.items()}


def images(recipe, n=16):
    side = 28 if "mnist" in recipe.data else 32
    channels = 1 if side == 28 else 3
    return torch.empty(n, channels, side, side, dtype=torch.uint8, device=CARD)


def step(recipe, model):
    """One step of every player of a recipe on the card."""
    batch = images(recipe)
    if recipe.name.endswith("classifier"):
        batch = batch, torch.empty(len(batch), dtype=torch.int64, device=CARD)
    for player in players_of(recipe.objective(), model):
        loss, metrics = player.objective(model, batch)
        loss.backward()
        torch.stack([loss, *metrics.values()]).detach()


@pytest.mark.parametrize("name", RECIPES)
def test_no_step_waits_for_the_card(name, card):
    recipe = card[name]
    model = recipe.model().to(CARD)
    step(recipe, model)  # what is brought there once is there
    with NoNumbersFromHere(), NothingCrosses():
        step(recipe, model)


@pytest.mark.parametrize("sampler", [sampling.sample_ddim, sampling.sample_adams])
def test_no_call_of_a_sampler_waits_for_the_card(sampler, card, monkeypatch):
    """Once, before the first call, the schedule is fetched from the card."""
    model = card["ddpm-toy"].model()
    path = sampling._path(model.diffusion, 5)
    monkeypatch.setattr(sampling, "_path", lambda *_: path)
    model = model.to(CARD)
    x = torch.empty(4, *model.shape, device=CARD)
    with torch.no_grad(), NoNumbersFromHere(), NothingCrosses():
        assert sampler(model.clipped_noise, model.diffusion, x, 5).shape == x.shape


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.sum().item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.cpu(),
        lambda x: x + torch.tensor([1.0], device=CARD),
        lambda x: x + x.new_tensor([1.0]),
        lambda x: x + torch.ones(1).to(CARD),
        lambda x: x.double(),
    ],
)
def test_the_instrument_notices(wrong):
    x = torch.empty(3, device=CARD)
    with NoNumbersFromHere(), NothingCrosses(), pytest.raises(Exception):  # noqa: B017
        wrong(x)


def doubled_in_place(tree):
    """Lines where a tensor becomes float64 that may lie on a card: `.double()` of what is not made or brought here first."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef) or function.name == "in_double":
            continue
        for call in ast.walk(function):
            if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute)):
                continue
            before = ast.unparse(call.func.value)
            made_here = before.startswith(("torch.ones(", "torch.arange("))
            if call.func.attr == "double" and not (before.endswith(".cpu()") or made_here):
                yield call.lineno
            wanted = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            in_float64 = "torch.float64" in [*wanted.values(), *map(ast.unparse, call.args)]
            elsewhere = "device" in wanted or call.func.attr.endswith("_like")
            if in_float64 and (elsewhere or not before.endswith(("torch", ".cpu()"))):
                yield call.lineno


def test_nothing_is_in_float64_on_a_card_that_has_none():
    """Apple's cards have no float64: whatever wants it goes through `in_double`, or was brought to the processor."""
    found = {
        path.relative_to(PACKAGE).as_posix(): lines
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "book"  # computes on the processor alone
        if (lines := list(doubled_in_place(ast.parse(path.read_text("utf8")))))
    }
    assert not found


def test_the_reader_of_calls_notices():
    calls = (
        "x.cpu().double()",
        "x.double().cpu()",
        "x.to(torch.float64)",
        "torch.ones(1).double()",
        "torch.zeros(2, device=d, dtype=torch.float64)",
        "torch.zeros(2, dtype=torch.float64)",
        "x.cpu().to(torch.float64)",
        "x.sum(dtype=torch.float64)",
        "torch.zeros_like(x, dtype=torch.float64)",
    )
    found = doubled_in_place(ast.parse("def f(x, d):\n  " + "\n  ".join(calls)))
    assert sorted(calls[line - 2] for line in found) == sorted(calls[i] for i in (1, 2, 4, 7, 8))
