"""What is measured on a recorded diffusion model, beyond what its chapter shows: properties, bad input, resuming."""

import dataclasses
import warnings
from types import SimpleNamespace

import pytest
import torch
from sklearn.exceptions import ConvergenceWarning

from genbook import data
from genbook.diffusion import probes
from genbook.diffusion.ddpm import DDPM
from genbook.diffusion.probes import (
    RECIPES,
    SAMPLERS,
    bring_back,
    draw,
    unet_features,
)
from genbook.diffusion.unet import layers
from genbook.families import Job
from genbook.measures import STRENGTHS, linear_probe
from genbook.randomness import own_randomness


@pytest.fixture(scope="module")
def images():
    return data.toy_house_numbers(24, seed=1).images


@pytest.fixture(scope="module")
def model():
    with own_randomness(0):
        return DDPM(20, dim=8, mults=(1, 1)).eval()


def test_draws_repeat_and_stay_in_range(model):
    for sampler in SAMPLERS:
        one, two = draw(model, sampler, 4, 3, seed=1), draw(model, sampler, 4, 3, seed=1)
        assert torch.equal(one, two) and one.shape == (3, 3, 32, 32)
        assert one.abs().max() <= 1
        assert not torch.equal(one, draw(model, sampler, 4, 3, seed=2))


def test_a_draw_leaves_the_random_state_alone(model):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw(model, "ancestral", 2, 2)
    assert torch.equal(torch.rand(3), expected)


def test_more_than_a_batch_is_drawn(model):
    assert draw(model, "ddim", 1, 65).shape == (65, 3, 32, 32)


def test_bad_draws(model):
    with pytest.raises(ValueError, match="sampler must be one of ancestral, half, ddim, adams"):
        draw(model, "heun", 4, 2)
    with pytest.raises(ValueError, match="steps must lie in"):
        draw(model, "ddim", 21, 2)
    with pytest.raises(ValueError, match="n must be at least 1"):
        draw(model, "ddim", 4, 0)


def test_a_little_noise_brings_back_the_image(model, images):
    """After one step of noise of standard deviation 0.01 the guess can't be far, whatever the network says; after all of them it is."""
    x = images[:8].float() / 127.5 - 1
    near, far = ((bring_back(model, images[:8], t) - x).square().mean().sqrt() for t in (1, 20))
    assert near < 0.05 < far


def test_fewer_steps_back(model, images):
    one = bring_back(model, images[:2], 20, stride=1)
    assert torch.equal(one, bring_back(model, images[:2], 20, stride=1))
    assert not torch.equal(one, bring_back(model, images[:2], 20, stride=10))
    assert bring_back(model, images[:2], 3, stride=10).shape == (2, 3, 32, 32)  # two calls


@pytest.mark.parametrize(("t", "stride"), [(0, 1), (21, 1), (5, 0)])
def test_bad_returns(model, images, t, stride):
    with pytest.raises(ValueError, match="t must lie in"):
        bring_back(model, images, t, stride)


def test_features_are_the_layers_outputs(model, images):
    found = unet_features(model, images, 0, side=2)
    assert list(found) == ["down 1", "down 2", "middle", "up 1", "last"] == list(layers(model.unet))
    assert {name: f.shape for name, f in found.items()} == dict.fromkeys(found, (24, 8 * 4))
    seen = []
    hook = model.unet.last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        model.unet(images[:24].float() / 127.5 - 1, torch.zeros(24, dtype=torch.int64))
    hook.remove()
    by_hand = seen[0].unflatten(2, (2, 16)).unflatten(4, (2, 16)).mean((3, 5)).flatten(1)
    torch.testing.assert_close(found["last"], by_hand, atol=1e-5, rtol=1e-4)


def test_features_leave_no_hooks(model, images):
    unet_features(model, images[:2], 5)
    with pytest.raises(ValueError):
        unet_features(model, images[:2, :1], 5)
    assert not any(part._forward_hooks for part in layers(model.unet).values())


def test_noise_of_features(model, images):
    """Without noise the seed says nothing, with noise it does."""
    for t, same in ((0, True), (10, False)):
        a, b = (unet_features(model, images[:2], t, seed=seed)["last"] for seed in (0, 1))
        assert torch.equal(a, b) == same
    for t in (-1, 21):
        with pytest.raises(ValueError, match=r"t must (lie in \[0, 20\]|be at least 0)"):
            unet_features(model, images[:2], t)


def test_a_probe_with_a_weak_penalty_converges():
    torch.manual_seed(0)
    labels = torch.arange(600) % 5
    clouds = 0.5 * torch.randn(5, 40)[labels] + torch.randn(600, 40)
    stretched = clouds * torch.logspace(0, -2, 40) @ torch.randn(40, 40)
    part = stretched, labels
    with warnings.catch_warnings():
        warnings.simplefilter("error", ConvergenceWarning)
        linear_probe(part, part, part, strengths=(1e3,))


def test_probe_of_nothing_is_at_chance():
    torch.manual_seed(0)
    splits = [(torch.randn(600, 5), torch.randint(4, (600,))) for _ in range(3)]
    assert abs(linear_probe(*splits).test - 0.25) < 4 * (0.25 * 0.75 / 600) ** 0.5


def test_probe_of_labels_is_right():
    torch.manual_seed(0)
    labels = [torch.randint(10, (300,)) for _ in range(3)]
    splits = [(torch.eye(10)[y] + 0.01 * torch.randn(300, 10), y) for y in labels]
    assert linear_probe(*splits)[:2] == (1.0, 1.0)


def test_the_chosen_penalty_is_told():
    """One feature tells the label and many tell nothing: weak penalties learn these by heart, strong ones learn nothing."""
    torch.manual_seed(0)
    splits = []
    for n in (200, 2000, 2000):
        labels = torch.randint(2, (n,))
        splits.append(
            (torch.cat([2.0 * labels[:, None] + torch.randn(n, 1), torch.randn(n, 80)], 1), labels)
        )
    found = linear_probe(*splits)
    assert STRENGTHS[0] < found.strength < STRENGTHS[-1]
    same = linear_probe(*splits, strengths=(found.strength,))  # with none before it
    assert same.strength == found.strength and abs(same.valid - found.valid) <= 0.002
    for worse in (STRENGTHS[0], STRENGTHS[-1]):
        assert linear_probe(*splits, strengths=(worse,)).valid < found.valid - 0.02
    with pytest.raises(ValueError, match="strengths must increase"):
        linear_probe(*splits, strengths=(1.0, 0.1))


@pytest.mark.parametrize(
    ("shares", "tried", "chosen"),
    [
        ((0.2, 0.5, 0.7, 0.71, 0.66, 0.65, 0.9, 0.9, 0.9), 6, 3),  # two that are worse: the last
        ((0.2, 0.2, 0.2, 0.19, 0.18, 0.2, 0.5, 0.6, 0.5), 9, 7),  # within an error: not yet
        ((0.5, 0.6, 0.1, 0.7, 0.6, 0.7, 0.6, 0.7, 0.6), 9, 3),  # one at a time: not yet
    ],
)
def test_penalties_that_do_worse_and_worse_are_the_last(monkeypatch, shares, tried, chosen):
    """By made-up shares of 400 validation images, whose error is 0.02."""
    from sklearn.linear_model import LogisticRegression

    fitted, fit, told = [], LogisticRegression.fit, dict(zip(STRENGTHS, shares))
    monkeypatch.setattr(
        LogisticRegression, "fit", lambda self, *of: fitted.append(self.C) or fit(self, *of)
    )
    monkeypatch.setattr(LogisticRegression, "score", lambda self, x, y: told[self.C])
    torch.manual_seed(0)
    found = linear_probe(*[(torch.randn(400, 2), torch.arange(400) % 2) for _ in range(3)])
    assert fitted == list(STRENGTHS[:tried])
    assert found == (shares[chosen], shares[chosen], STRENGTHS[chosen])


@pytest.fixture
def smoke():
    return dataclasses.replace(
        RECIPES["ddpm-svhn-compact-probes"].smoke(),
        samplers=(("ddim", 2),),
        noised_at=(500, 1000),
        looked_at=(),
        samples=16,
        returned=8,
    )


def test_an_interrupted_measurement_goes_on(smoke, tmp_path, monkeypatch):
    whole = probes.train(smoke, Job(tmp_path / "whole", progress=False))
    calls, real = [], probes.bring_back

    def failing(*args):
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(probes, "bring_back", failing)
    with pytest.raises(KeyboardInterrupt):
        probes.train(smoke, Job(tmp_path / "cut", progress=False))
    run = probes.train(smoke, Job(tmp_path / "cut", progress=False))
    assert calls == [500, 1000, 1000]  # the first is not measured again
    assert {k: v["value"] for k, v in run.record["metrics"].items()} == {
        k: v["value"] for k, v in whole.record["metrics"].items()
    }
    assert not (run.path / "checkpoint.pt").exists()
    assert probes.evaluate(run) == run.record["metrics"]
    with pytest.raises(ValueError, match="draws no images: it holds measurements"):
        probes.sample(run, 4)


def test_another_recipe_s_checkpoint_is_refused(smoke, tmp_path, monkeypatch):
    monkeypatch.setattr(
        probes, "bring_back", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        probes.train(smoke, Job(tmp_path, progress=False))
    with pytest.raises(ValueError, match="seed"):
        probes.train(dataclasses.replace(smoke, seed=1), Job(tmp_path, progress=False))


def test_a_model_that_is_not_recorded(smoke, tmp_path):
    with pytest.raises(ValueError, match="no run 'ddpm-tony'.*did you mean 'ddpm-toy'"):
        probes.train(dataclasses.replace(smoke, model="ddpm-tony"), Job(tmp_path, progress=False))


def test_validation_images_choose_the_probe(smoke, tmp_path):
    """Of two layers the one that is better on validation images is reported, though it is worse on test images."""
    recipe = dataclasses.replace(smoke, noised_at=(), looked_at=(0,))
    found = {f"reference.{split}_features": torch.randn(32, 4) for split in ("train", "test")}
    found |= {
        "ddim-2.features": torch.randn(16, 4),
        "probe-others.VAE": torch.tensor([0.3, 0.2]),
        "probe-others.pixels": torch.tensor([0.2, 0.1]),
    }
    found |= {"probe-0.middle": torch.tensor([0.6, 0.5]), "probe-0.last": torch.tensor([0.5, 0.7])}
    metrics = probes.figures(recipe, found)
    assert (
        metrics["network_probe"]["value"] == 0.5 and "0.middle" in metrics["network_probe"]["note"]
    )
    assert metrics["vae_probe"]["value"] == pytest.approx(0.2) and "digit_lost" not in metrics
    assert not {"untrained_probe", "majority_share"} & metrics.keys()  # of an older record

    found |= {
        "untrained-0.last": torch.tensor([0.3, 0.25, 1e-3]),
        "majority.right": torch.tensor([0.2, 0.19]),
    }
    metrics = probes.figures(recipe, found)
    assert metrics["untrained_probe"]["value"] == pytest.approx(0.25)
    assert metrics["untrained_probe"]["note"].endswith("before training, C = 1e-03")
    assert metrics["majority_share"]["value"] == pytest.approx(0.19)
    assert metrics["network_probe"]["value"] == 0.5


def test_the_majority_is_that_of_the_training_images():
    labels = [torch.tensor(y) for y in ([1, 1, 2, 3, 3, 3], [1, 1, 3], [3, 3, 1, 3])]
    splits = (SimpleNamespace(labels=y) for y in labels)
    recipe = SimpleNamespace(probed=(3, 3, 4))  # among the first three the ones are most
    train, valid, test = splits
    of = SimpleNamespace(recipe=recipe, splits=SimpleNamespace(train=train, valid=valid, test=test))
    assert probes._majority(of)["right"].tolist() == pytest.approx([2 / 3, 1 / 4])


def test_the_three_lengths_are_measured_alike():
    recipes = [RECIPES[f"ddpm-small-t{T}-probes"] for T in (500, 1000, 1500)]
    assert len({dataclasses.replace(r, name="any", model="any", samplers=()) for r in recipes}) == 1
    assert [r.samplers for r in recipes] == [
        (("ddim", 50), ("ancestral", T)) for T in (500, 1000, 1500)
    ]
