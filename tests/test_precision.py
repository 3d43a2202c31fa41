"""Models in double and in half precision, and records under another default of torch."""

import dataclasses

import pytest
import torch

from genbook.families import Job, family

DRAWING = {
    "vae": lambda model: model.sample(3),
    "gaussian-vae": lambda model: model.sample(3),
    "gan": lambda model: model.sample(3),
    "wgan": lambda model: model.sample(3),
    "ddpm": lambda model: model.sample(2, steps=3),
}
READING = {
    "vae": lambda model, x: model.encode(x)[0],
    "gaussian-vae": lambda model, x: model.encode(x).mean,
    "gan": lambda model, x: model.discriminator(x),
    "wgan": lambda model, x: model.critic(x),
    "ddpm": lambda model, x: model.unet(x, torch.tensor([1, 5])),
}


def untrained(name):
    torch.manual_seed(5)
    return next(iter(family(name).recipes.values())).smoke().model().eval()


@pytest.mark.parametrize("name", DRAWING)
def test_a_model_draws_and_reads_in_every_precision(name):
    def found(kind):
        model = untrained(name).to(kind)
        torch.manual_seed(6)
        drawn = DRAWING[name](model)
        x = torch.rand(drawn[:2].shape, generator=torch.Generator().manual_seed(7))
        return [out.double() for out in (drawn, READING[name](model, x))]

    exact, single, half = map(found, (torch.float64, torch.float32, torch.bfloat16))
    for one, other, coarse in zip(exact, single, half):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
        assert coarse.isfinite().all() and (coarse - one).abs().mean() < 0.1 * one.abs().mean()


def test_the_schedule_of_a_model_in_half_precision_keeps_its_digits():
    model, half = untrained("ddpm"), untrained("ddpm").to(torch.bfloat16)
    assert half.unet.stem.weight.dtype == torch.bfloat16
    for (name, one), other in zip(model.named_buffers(), half.buffers()):
        assert torch.equal(one, other) and other.dtype == torch.float32, name


@pytest.mark.parametrize("name", ["vae", "gaussian-vae", "gan", "simsiam", "classifier"])
def test_a_record_is_the_same_whatever_torch_makes_by_default(name, tmp_path):
    recipe = next(iter(family(name).recipes.values())).smoke()
    recipe = dataclasses.replace(recipe, name=f"{name}+smoke", epochs=1)

    def made(out):
        return family(name).train(
            recipe, Job(tmp_path / out / recipe.name, device="cpu", progress=False)
        )

    expected = made("single").record["metrics"]
    torch.set_default_dtype(torch.float64)
    try:
        run = made("double")
        assert run.record["metrics"] == expected
        assert family(name).evaluate(run).keys() == expected.keys()
        assert torch.get_default_dtype() == torch.float64
        if family(name).draw:
            assert family(name).sample(run, 2).isfinite().all()
    finally:
        torch.set_default_dtype(torch.float32)
