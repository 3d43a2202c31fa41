"""The samplers beyond what their chapter shows: known data in few steps, seeds, callbacks, films, bad input."""

import io
import math

import pytest
import torch
from PIL import Image

from genbook.diffusion.derivation import Diffusion, linear_betas
from genbook.diffusion.exact import GaussianMixtureNoise
from genbook.diffusion.sampling import denoise_from, sample_adams, sample_ancestral, sample_ddim
from genbook.measures import crossing
from genbook.viz import animation

ALL = [sample_ancestral, sample_ddim, sample_adams]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(scope="module")
def diffusion():
    return Diffusion(linear_betas(200, 1e-4, 0.1))


@pytest.fixture(scope="module")
def data(diffusion):
    return GaussianMixtureNoise(diffusion, torch.tensor([[0.6, -0.2]]), torch.tensor([0.4]))


def levels(diffusion):
    kept = (1 - diffusion.betas.double()).cumprod(0)
    return ((1 - kept) / kept).sqrt()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_moments_of_known_data(data, diffusion, eta):
    n = 20_000
    x = sample_ddim(data, diffusion, torch.randn(n, 2), steps=200, eta=eta)
    assert ((x.mean(0) - torch.tensor([0.6, -0.2])).abs() < 0.02).all()
    assert ((x.std(0) - 0.4).abs() < 0.02).all()


def test_second_order_gets_the_moments_in_few_steps(data, diffusion):
    """The flow is linear for Gaussian data, so three points tell all: against the exact flow."""
    x = torch.tensor([[-2.0, 0.0], [0.0, 1.0], [2.0, -1.5]])
    nu, mean, std = levels(diffusion)[-1].item(), torch.tensor([0.6, -0.2]), 0.4
    exact = mean + (x * (1 + nu**2) ** 0.5 - mean) * std / (std**2 + nu**2) ** 0.5
    off = {
        sampler: (sampler(data, diffusion, x, steps=25) - exact).abs().max()
        for sampler in (sample_ddim, sample_adams)
    }
    assert off[sample_adams] < 0.04 and off[sample_ddim] > 3 * off[sample_adams], off


def test_one_step_and_one_point_are_exact(diffusion):
    """A single point as data: whatever the sampler and its number of steps, it is found."""
    at = torch.tensor([[0.3, -0.7]])

    def truth(x, t):
        kept = diffusion.alphas_cumprod[t][:, None]
        return (x - kept.sqrt() * at) / diffusion.sqrt_one_minus_alphas_cumprod[t][:, None]

    for sampler in ALL:
        for steps in (1, 2, 7, 200):
            x = sampler(truth, diffusion, torch.randn(5, 2), steps)
            torch.testing.assert_close(x, at.expand(5, 2), atol=2e-4, rtol=0)


def test_without_noise_it_is_a_function(data, diffusion):
    start = torch.randn(50, 2)
    first = sample_ddim(data, diffusion, start, steps=20)
    assert torch.equal(sample_ddim(data, diffusion, start, steps=20), first)
    assert not torch.equal(sample_ddim(data, diffusion, start, steps=20, eta=0.5), first)
    fine = sample_ddim(data, diffusion, start, steps=200)
    errors = [
        (sample_ddim(data, diffusion, start, steps=steps) - fine).abs().max()
        for steps in (5, 20, 80)
    ]
    assert errors[0] > errors[1] > errors[2]
    assert torch.equal(sample_adams(data, diffusion, start), sample_adams(data, diffusion, start))


def test_ancestral_is_ddim_with_all_the_noise(data, diffusion):
    start, made = torch.randn(50, 2), []
    for draw in (
        lambda: sample_ancestral(data, diffusion, start, 30),
        lambda: sample_ddim(data, diffusion, start, 30, eta=1.0),
    ):
        torch.manual_seed(1)
        made.append(draw())
    assert torch.equal(*made)


@pytest.mark.parametrize("sampler", ALL)
def test_calls_are_counted_and_start_is_kept(data, diffusion, sampler):
    start, seen, calls = torch.randn(3, 2), [], []
    before = start.clone()

    def model(x, t):
        assert t.dtype == torch.int64 and t.shape == (3,) and not torch.is_grad_enabled()
        calls.append(t[0].item())
        return data(x, t)

    x = sampler(
        model, diffusion, start, steps=10, callback=lambda index, x: seen.append((index, x))
    )
    assert calls == [index for index, _ in seen] and len(calls) == 10
    assert calls[0] == 199 and calls[-1] == 0 and calls == sorted(set(calls), reverse=True)
    assert torch.equal(seen[-1][1], x) and torch.equal(start, before) and torch.is_grad_enabled()
    calls.clear()
    sampler(model, diffusion, start, steps=1)
    assert calls == [199]


@pytest.mark.parametrize("sampler", ALL)
def test_schedules_of_any_length(sampler):
    for T in (1, 2, 37):
        diffusion = Diffusion(linear_betas(T, 1e-3, 0.5))
        calls = []
        x = sampler(
            lambda x, t: calls.append(t[0].item()) or 0.1 * x, diffusion, torch.randn(2, 3, 4, 4), T
        )
        assert (
            calls == list(range(T - 1, -1, -1)) and x.shape == (2, 3, 4, 4) and x.isfinite().all()
        )


@pytest.mark.parametrize("sampler", ALL)
def test_precision_is_that_of_the_start(data, diffusion, sampler):
    start = torch.randn(2, 2, dtype=torch.float64)
    assert sampler(lambda x, t: x.float(), diffusion, start, steps=5).dtype == torch.float64


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"steps": 0}, "steps must lie in"),
        ({"steps": 201}, "steps must lie in"),
        ({"eta": -0.1}, "eta must lie"),
        ({"eta": 1.5}, "eta must lie"),
        ({"eta": float("nan")}, "eta must be a finite number"),
    ],
)
def test_no_such_sampler(data, diffusion, arguments, told):
    with pytest.raises(ValueError, match=told):
        sample_ddim(data, diffusion, torch.zeros(2, 2), **arguments)


@pytest.mark.parametrize("sampler", ALL)
def test_bad_input(data, diffusion, sampler):
    for steps in (0, -3, 201):
        told = r"steps must lie in \[1, 200\]" if steps >= 0 else "steps must be at least 0, got -3"
        with pytest.raises(ValueError, match=told):
            sampler(data, diffusion, torch.zeros(2, 2), steps=steps)
    with pytest.raises(
        ValueError, match="x must be a batch of floating-point numbers, got torch.uint8"
    ):
        sampler(data, diffusion, torch.zeros(2, 2, dtype=torch.uint8))
    with pytest.raises(ValueError, match="x must be a batch"):
        sampler(data, diffusion, torch.tensor(0.5))
    with pytest.raises(
        ValueError, match=r"model must return noise of the shape of x, \(2, 2\), got \(2,\)"
    ):
        sampler(lambda x, t: x[:, 0], diffusion, torch.zeros(2, 2))


def test_callback_that_raises(data, diffusion):
    def callback(index, x):
        if index < 100:
            raise OSError("disk full")

    for draw in (
        lambda: sample_ddim(data, diffusion, torch.zeros(2, 2), steps=200, callback=callback),
        lambda: sample_ancestral(data, diffusion, torch.zeros(2, 2), callback=callback),
        lambda: sample_adams(data, diffusion, torch.zeros(2, 2), steps=200, callback=callback),
        lambda: denoise_from(data, diffusion, torch.zeros(2, 2), 150, callback=callback),
    ):
        with pytest.raises(
            RuntimeError, match="callback failed at t_index 99.*disk full"
        ) as caught:
            draw()
        assert isinstance(caught.value.__cause__, OSError)


# There and back


def correlation(betas, std, t_index):
    """Of Gaussian data with what returns, by the chain's own steps: each is linear, with noise of variance β̃."""
    kept = (1 - betas).cumprod(0)
    v = kept * std**2 + 1 - kept
    with_start, variance = kept[t_index].sqrt() * std**2, v[t_index]
    for i in range(t_index, -1, -1):
        slope = (1 - betas[i] / v[i]) / (1 - betas[i]).sqrt()
        fresh = betas[i] * (1 - kept[i - 1]) / (1 - kept[i]) if i else 0.0
        with_start, variance = slope * with_start, slope**2 * variance + fresh
    return (with_start / (std * variance.sqrt())).item()


@pytest.mark.parametrize("t_index", [10, 60, 120])
def test_return_has_the_correlation_of_its_chain(data, diffusion, t_index):
    n = 8000
    x = data.sample(n)
    back = denoise_from(data, diffusion, x, t_index)
    rho = correlation(diffusion.betas.double(), 0.4, t_index)
    for axis in range(2):
        found = torch.corrcoef(torch.stack([x[:, axis], back[:, axis]]))[0, 1].item()
        assert abs(found - rho) < 4 * (1 - rho**2) / n**0.5


def test_correlation_of_short_steps_is_the_closed_form():
    off = []
    for T in (200, 2000, 20_000):
        betas = linear_betas(T, 0.02 / T, 20 / T)
        nu = (1 / (1 - betas).cumprod(0)[3 * T // 10 - 1] - 1).item() ** 0.5
        off.append(abs(correlation(betas, 0.4, 3 * T // 10 - 1) - 0.4**2 / (0.4**2 + nu**2)))
    assert off[0] > 5 * off[1] > 25 * off[2] and off[2] < 1e-3


def test_return_uses_the_noise_that_is_given(data, diffusion):
    x, noise, calls = torch.randn(4, 2), torch.randn(4, 2), []

    def model(x, t):
        calls.append((t[0].item(), x))
        return data(x, t)

    denoise_from(model, diffusion, x, 40, noise=noise, steps=5)
    assert [index for index, _ in calls] == [40, 30, 20, 10, 0]
    torch.testing.assert_close(calls[0][1], diffusion.q_sample(x, torch.full((4,), 40), noise))
    calls.clear()
    denoise_from(model, diffusion, x, 7)
    assert [index for index, _ in calls] == list(range(7, -1, -1))


def test_return_from_the_first_step_is_one_call_without_fresh_noise(data, diffusion):
    x, noise = torch.randn(4, 2), torch.randn(4, 2)
    first = denoise_from(data, diffusion, x, 0, noise=noise)
    assert torch.equal(first, denoise_from(data, diffusion, x, 0, noise=noise))
    assert (first - x).abs().max() < 0.1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"t_index": 200}, r"t_index must lie in \[0, 200\), got 200"),
        ({"t_index": -1}, "t_index must be at least 0, got -1"),
        ({"t_index": 5, "steps": 7}, r"steps must lie in \[1, 6\], got 7"),
        ({"t_index": 5, "steps": 0}, "steps must lie in"),
        ({"t_index": 5, "noise": torch.zeros(2, 1)}, "noise must have the shape"),
        (
            {"t_index": 5, "x_start": torch.zeros(2, 2, dtype=torch.uint8)},
            "x_start must be a batch of floating-point",
        ),
    ],
)
def test_no_way_back(data, diffusion, arguments, told):
    with pytest.raises(ValueError, match=told):
        denoise_from(data, diffusion, **{"x_start": torch.zeros(2, 2)} | arguments)


# The step of no return


def test_crossing_of_a_straight_line():
    line = torch.tensor([[1.0, 0.75, 0.25, 0.0]])
    assert crossing([0, 10, 20, 30], line) == pytest.approx((15, 15, 15))
    assert crossing([0, 10, 20, 30], line, level=0.25) == pytest.approx((20, 20, 20))
    uneven = torch.tensor([[1.0, 0.4, 0.6, 0.0]])
    assert crossing([1, 2, 3, 7], uneven, resamples=1)[0] == pytest.approx(
        1 + 0.5 / 0.6
    )  # the first time


def test_crossing_interval_covers_the_truth():
    """Images kept until a step of their own, uniform on 0 to 1: the mean is 1 − t, and t* is 1/2."""
    t, covered, widths = torch.linspace(0, 1, 21), 0, []
    for seed in range(100):
        kept = (torch.rand(200, 1) > t).double()
        star, low, high = crossing(t, kept, resamples=200, seed=seed)
        assert low <= star <= high
        covered += low <= 0.5 <= high
        widths.append(high - low)
    assert covered >= 87  # of 95 expected
    assert sum(widths) / 100 == pytest.approx(2 * 1.96 * math.sqrt(0.25 / 200), rel=0.15)


def test_crossing_is_the_same_for_a_seed():
    kept = (torch.rand(50, 1) > torch.linspace(0, 1, 11)).double()
    t = range(11)
    assert crossing(t, kept, seed=3) == crossing(t, kept, seed=3)
    assert crossing(t, kept, seed=3) != crossing(t, kept, seed=4)


@pytest.mark.parametrize(
    ("t", "agreement", "told"),
    [
        ([1, 2, 3], torch.ones(4, 2), "agreement must be"),
        ([1, 2], torch.ones(2), "agreement must be"),
        ([2, 1], torch.ones(4, 2), "t must be at least 2 increasing"),
        ([1], torch.ones(4, 1), "t must be at least 2 increasing"),
        ([1, 2], torch.ones(0, 2), "agreement and resamples must hold"),
        ([1, 2], torch.ones(4, 2), "level must lie below"),
        ([1, 2], torch.zeros(4, 2), "level must lie below"),
        ([1, 2], torch.full((4, 2), float("nan")), "level must lie below"),
    ],
)
def test_no_crossing(t, agreement, told):
    with pytest.raises(ValueError, match=told):
        crossing(t, agreement)


# Films


def png(picture):
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def test_film_shows_its_frames_in_order_and_loops():
    colours = [
        (200, 0, 0, 255),
        (0, 200, 0, 255),
        (0, 0, 200, 0),
        (0, 0, 200, 255),
    ]  # the third is transparent
    frames = []
    for i, colour in enumerate(colours):
        picture = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
        picture.paste(colour, (4 * i, 2, 4 * i + 4, 6))
        frames.append(png(picture))
    film = Image.open(io.BytesIO(animation(frames, milliseconds=50, hold=700)))
    assert (
        film.format == "PNG" and film.is_animated and film.n_frames == 4 and film.info["loop"] == 0
    )
    for i, colour in enumerate(colours):
        film.seek(i)
        assert film.info["duration"] == (700 if i == 3 else 50)
        shown = film.convert("RGBA")
        opaque = {(x, y) for x in range(20) for y in range(10) if shown.getpixel((x, y))[3] > 128}
        wanted = (
            {(x, y) for x in range(4 * i, 4 * i + 4) for y in range(2, 6)} if colour[3] else set()
        )
        assert opaque == wanted  # and nothing is left of the frames before
        assert (
            not wanted or max(abs(a - b) for a, b in zip(shown.getpixel((4 * i, 2)), colour)) < 20
        )


def test_film_of_images():
    from genbook.viz import to_png

    frames = [to_png(torch.rand(8, 3, 32, 32), ncols=4) for _ in range(5)]
    film = animation(frames, colours=256)
    shown = Image.open(io.BytesIO(film))
    assert shown.n_frames == 5 and shown.size == Image.open(io.BytesIO(frames[0])).size
    assert film == animation(frames, colours=256)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"frames": []}, "frames must hold at least 2"),
        ({"frames": [png(Image.new("RGB", (2, 2)))]}, "frames must hold at least 2"),
        ({"frames": [png(Image.new("RGB", (2, i))) for i in (2, 3)]}, "frames must be of one size"),
        ({"milliseconds": 0}, "milliseconds must be at least 1, got 0"),
        ({"hold": 0}, "hold must be at least 1, got 0"),
        ({"colours": 1}, "colours must lie in"),
        ({"colours": 257}, "colours must lie in"),
    ],
)
def test_no_film(arguments, told):
    with pytest.raises(ValueError, match=told):
        animation(**{"frames": [png(Image.new("RGB", (2, 2)))] * 2} | arguments)
