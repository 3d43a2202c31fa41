"""The samplers beyond what their chapter shows: known data in few steps, seeds, callbacks, bad input."""

import pytest
import torch

from genbook.diffusion import Diffusion, GaussianMixtureNoise, linear_betas
from genbook.samplers import sample_ddim


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def diffusion():
    return Diffusion(linear_betas(200, 1e-4, 0.1))


@pytest.fixture(scope="module")
def data(diffusion):
    return GaussianMixtureNoise(diffusion, torch.tensor([[0.6, -0.2]]), torch.tensor([0.4]))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moments_of_known_data(data, diffusion, eta):
    n = 20_000
    x = sample_ddim(data, diffusion, torch.randn(n, 2), steps=200, eta=eta)
    assert ((x.mean(0) - torch.tensor([0.6, -0.2])).abs() < 0.02).all()
    assert ((x.std(0) - 0.4).abs() < 0.02).all()


def test_without_noise_it_is_a_function(data, diffusion):
    start = torch.randn(50, 2)
    first = sample_ddim(data, diffusion, start, steps=20)
    assert torch.equal(sample_ddim(data, diffusion, start, steps=20), first)
    assert not torch.equal(sample_ddim(data, diffusion, start, steps=20, eta=0.5), first)
    fine = sample_ddim(data, diffusion, start, steps=200)
    errors = [(sample_ddim(data, diffusion, start, steps=steps) - fine).abs().max() for steps in (5, 20, 80)]
    assert errors[0] > errors[1] > errors[2]


def test_calls_are_counted_and_start_is_kept(data, diffusion):
    start, seen, calls = torch.randn(3, 2), [], []
    before = start.clone()

    def model(x, t):
        assert t.dtype == torch.int64 and t.shape == (3,)
        calls.append(t[0].item())
        return data(x, t)

    x = sample_ddim(model, diffusion, start, steps=10, callback=lambda index, x: seen.append((index, x)))
    assert calls == [index for index, _ in seen] and len(calls) == 10
    assert calls[0] == 199 and calls[-1] == 0 and calls == sorted(set(calls), reverse=True)
    assert torch.equal(seen[-1][1], x) and torch.equal(start, before)
    calls.clear()
    sample_ddim(model, diffusion, start, steps=1)
    assert calls == [199]


@pytest.mark.parametrize(("arguments", "told"), [({"steps": 0}, "steps must lie in"), ({"steps": 201}, "steps must lie in"), ({"eta": -0.1}, "eta must lie"), ({"eta": 1.5}, "eta must lie"), ({"eta": float("nan")}, "eta must lie")])
def test_no_such_sampler(data, diffusion, arguments, told):
    with pytest.raises(ValueError, match=told):
        sample_ddim(data, diffusion, torch.zeros(2, 2), **arguments)


def test_callback_that_raises(data, diffusion):
    def callback(index, x):
        if index < 100:
            raise OSError("disk full")

    with pytest.raises(RuntimeError, match="callback failed at t_index 9.*disk full") as caught:
        sample_ddim(data, diffusion, torch.zeros(2, 2), steps=200, callback=callback)
    assert isinstance(caught.value.__cause__, OSError)
