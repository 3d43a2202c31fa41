"""Critics: the penalty's gradients and properties, objectives against closed forms, bad input, the run's loop."""

import dataclasses
import json
import math

import pytest
import torch
from torch import nn

from genbook import runs
from genbook.families import Job
from genbook.gan import two_lines
from genbook.gan.critics import (
    F_DIVERGENCES,
    OBJECTIVES,
    critic_loss,
    distribution1,
    lp_reg,
    make_critic,
    variational_bound,
    vf_squared_hellinger,
    vf_wasserstein_distance,
)
from genbook.randomness import own_randomness

torch.set_num_threads(1)


def images(n=16, side=16, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, n, 3, side, side, generator=generator, dtype=dtype)


def convolutions(gain=4.0, seed=0):
    """A small critic of images, steep enough to be fined everywhere; its scores are `(B, 1, 1, 1)`."""
    torch.manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(32, 1, 4),
    )
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(gain)
    return net


def penalty_and_gradient(net, x, y, seed=1):
    torch.manual_seed(seed)
    penalty = lp_reg(x, y, net)
    gradients = torch.autograd.grad(penalty, list(net.parameters()), allow_unused=True)
    return penalty.detach().double(), torch.cat(
        [g.flatten().double() for g in gradients if g is not None]
    )


# The penalty's gradient


@pytest.mark.parametrize("channels_last", [False, True])
def test_penalty_in_bf16_agrees_with_float64(channels_last):
    x, y = images()
    net = convolutions()
    if channels_last:
        net, x, y = (
            net.to(memory_format=torch.channels_last),
            x.to(memory_format=torch.channels_last),
            y.to(memory_format=torch.channels_last),
        )
    torch.manual_seed(1)
    t = torch.rand(len(x), 1, 1, 1)
    with torch.autocast("cpu", torch.bfloat16):
        low, by_low = penalty_and_gradient(net, x, y)
    assert low.dtype == torch.float64 and by_low.isfinite().all()
    net = net.double()
    x_hat = torch.lerp(y, x, t).double().requires_grad_()  # the same points
    (slope,) = torch.autograd.grad(net(x_hat).sum(), x_hat, create_graph=True)
    exact = (slope.flatten(1).norm(dim=1) - 1).clamp(min=0).square().mean()
    gradients = torch.autograd.grad(exact, list(net.parameters()), allow_unused=True)
    by_exact = torch.cat([g.flatten() for g in gradients if g is not None])
    assert exact > 1 and abs(low / exact.detach() - 1) < 0.01
    assert (by_low - by_exact).norm() / by_exact.norm() < 0.04  # the eight bits of bf16
    assert nn.functional.cosine_similarity(by_low, by_exact, dim=0) > 0.999


def test_penalty_in_bf16_sums_in_float32():
    """A slope of 64 equal parts in ten thousand features: a sum in bf16 would stop growing early."""
    w = torch.full((10_000,), 0.05)
    x, y = torch.randn(2, 4, 10_000)
    with torch.autocast("cpu", torch.bfloat16):
        penalty = lp_reg(x, y, lambda z: nn.functional.linear(z, w[None]))
    assert penalty.dtype == torch.float32
    assert abs(penalty.item() / (5.0 - 1) ** 2 - 1) < 0.01


def test_gradient_of_penalty_by_finite_differences():
    x, y = images(4, dtype=torch.float64)
    net = convolutions().double()
    _, gradient = penalty_and_gradient(net, x, y)
    weight, start = (
        net[2].weight,
        net[0].weight.numel(),
    )  # biases of the first layer have no gradient here
    bias_kept = any(
        g is not None
        for g in torch.autograd.grad(lp_reg(x, y, net), [net[0].bias], allow_unused=True)
    )
    offset = start + (net[0].bias.numel() if bias_kept else 0)
    for index in (0, 777, 4000):
        with torch.no_grad():
            values = []
            for step in (1e-5, -2e-5):
                weight.view(-1)[index] += step
                torch.manual_seed(1)
                values.append(lp_reg(x, y, net).item())
            weight.view(-1)[index] += 1e-5
        assert gradient[offset + index].item() == pytest.approx(
            (values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7
        )


@pytest.mark.parametrize("length", [0.0, 0.5, 1.0, 1.5, 20.0])
def test_linear_critic_is_fined_for_what_exceeds_one(length):
    x, y = images(dtype=torch.float64)
    w = nn.functional.normalize(torch.randn(x[0].numel(), dtype=torch.float64), dim=0) * length
    w.requires_grad_()
    penalty = lp_reg(x, y, lambda z: z.flatten(1) @ w)
    assert penalty.item() == pytest.approx(max(0, length - 1) ** 2, abs=1e-9)
    (gradient,) = torch.autograd.grad(penalty, w)
    expected = 2 * max(0, length - 1) * nn.functional.normalize(w.detach(), dim=0)
    torch.testing.assert_close(gradient, expected)


def test_norm_is_over_all_features_and_not_by_rows():
    x, y = images(dtype=torch.float64)
    w = torch.full((x[0].numel(),), 2 / x[0].numel() ** 0.5, dtype=torch.float64)
    assert w.view(3, 16, 16).norm(dim=-1).max() < 1  # no row is steep
    assert lp_reg(x, y, lambda z: z.flatten(1) @ w).item() == pytest.approx(1)
    flat = lp_reg(x.flatten(1), y.flatten(1), lambda z: z @ w)
    assert flat.item() == pytest.approx(1)  # the shape of a sample changes nothing


def test_a_sample_has_one_t():
    """All pixels of x̂ are the same part of the way, other samples other parts."""
    seen = []

    def critic(z):
        seen.append(z.detach())
        return z.flatten(1).sum(1)

    lp_reg(torch.ones(64, 3, 8, 8), torch.zeros(64, 3, 8, 8), critic)
    t = seen[0].flatten(1)
    assert torch.equal(t, t[:, :1].expand_as(t))
    assert (
        len(t[:, 0].unique()) == 64
        and t.min() >= 0
        and t.max() <= 1
        and 0.35 < t[:, 0].mean() < 0.65
    )


def test_plain_tensors_stay_plain():
    x, y = images()
    net = convolutions()
    penalty = lp_reg(x, y, net)
    penalty.backward()
    assert not x.requires_grad and x.grad is None and net[0].weight.grad.abs().sum() > 0
    fake = y.clone().requires_grad_()
    lp_reg(x, fake * 1, net).backward()
    assert fake.grad is None  # the critic's business, not the generator's


def test_penalty_without_gradients():
    x, y = images()
    net = convolutions()
    torch.manual_seed(0)
    with torch.no_grad():
        looked_at = lp_reg(x, y, net)
    torch.manual_seed(0)
    assert not looked_at.requires_grad and looked_at == lp_reg(x, y, net).detach()


def test_flat_critic_has_a_finite_gradient():
    """At a slope of exactly zero the norm has a kink; the penalty has none."""
    x, y = images(4)
    net = convolutions(gain=0.0)
    penalty, gradient = penalty_and_gradient(net, x, y)
    assert penalty == 0 and gradient.eq(0).all()


@pytest.mark.parametrize("shape", [(), (1,), (2,), (3, 4, 5)])
def test_any_shape_of_sample(shape):
    x, y = torch.randn(2, 6, *shape)
    assert lp_reg(x, y, lambda z: 3 * z.reshape(6, -1)[:, 0]).item() == pytest.approx(4, rel=1e-5)


# The objectives


@pytest.mark.parametrize("shape", [(8,), (8, 1), (8, 1, 1, 1)])
def test_shapes_of_scores(shape):
    x, y = torch.randn(8, 2), torch.randn(8, 2)
    scores = [z[:, 0] for z in (x, y)]
    assert vf_wasserstein_distance(x, y, lambda z: z[:, 0].reshape(shape)).item() == pytest.approx(
        (scores[0].mean() - scores[1].mean()).item()
    )
    assert vf_squared_hellinger(x, y, lambda z: z[:, 0].reshape(shape)).item() == pytest.approx(
        (2 - (-scores[0]).exp().mean() - scores[1].exp().mean()).item(), abs=1e-5
    )


def test_squared_hellinger_is_as_the_assignment_states_it():
    torch.manual_seed(0)
    x, y = torch.randn(2, 40, 2, dtype=torch.float64)
    net = make_critic(8).double()
    g_x, g_y = (1 - torch.exp(-net(z)) for z in (x, y))
    torch.testing.assert_close(
        vf_squared_hellinger(x, y, net), g_x.mean() - (g_y / (1 - g_y)).mean()
    )
    torch.testing.assert_close(
        vf_squared_hellinger(x, y, net), variational_bound(x, y, net, "squared Hellinger")
    )


def test_a_constant_critic_tells_nothing():
    x, y = torch.randn(8, 2), torch.randn(9, 2)
    assert vf_wasserstein_distance(x, y, lambda z: torch.full((len(z),), 3.0)) == 0
    assert vf_squared_hellinger(x, y, lambda z: torch.zeros(len(z))) == 0
    for constant in (-1.0, 0.5):  # 2 - 2 cosh, below the divergence, 0
        value = vf_squared_hellinger(x, x, lambda z: torch.full((len(z),), constant))
        assert value.item() == pytest.approx(2 - 2 * math.cosh(constant), rel=1e-5)


@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_bound_on_a_finite_space(name):
    """P and Q on five points: the best critic reaches the sum, any other stays below."""
    generator = torch.Generator().manual_seed(0)
    p, q = torch.rand(2, 5, generator=generator, dtype=torch.float64) + 0.05
    p, q = p / p.sum(), q / q.sum()
    each = F_DIVERGENCES[name]
    exact = (q * each.f(p / q)).sum()
    best = each.best((p / q).log())

    def bound(v):
        t = each.activation(v)
        return (p * t - q * each.conjugate(t)).sum()

    torch.testing.assert_close(bound(best), exact)
    for _ in range(20):
        assert (
            bound(
                best.clamp(-3, 3) + 0.2 * torch.randn(5, generator=generator, dtype=torch.float64)
            )
            <= exact + 1e-12
        )


def test_in_bf16_scores_are_averaged_in_float32():
    torch.manual_seed(0)
    x, y, net = torch.randn(4096, 2), torch.randn(4096, 2) + 0.1, make_critic(32)
    with torch.autocast("cpu", torch.bfloat16):
        values = [vf(x, y, net) for vf in (vf_wasserstein_distance, vf_squared_hellinger)]
    for value, vf in zip(values, (vf_wasserstein_distance, vf_squared_hellinger)):
        assert value.dtype == torch.float32 and value.item() == pytest.approx(
            vf(x, y, net).item(), abs=2e-3
        )


# Bad input

X = torch.randn(4, 2)


@pytest.mark.parametrize(
    "function",
    [vf_squared_hellinger, vf_wasserstein_distance, lp_reg, lambda *a: variational_bound(*a, "KL")],
)
@pytest.mark.parametrize(
    ("x", "y", "critic", "message"),
    [
        (X[:0], X, make_critic(4), "at least one sample"),
        (X, X[:0], make_critic(4), "at least one sample"),
        (X, torch.randn(4, 3), make_critic(4), "one shape"),
        (X.long(), X, make_critic(4), "floats"),
        (X, X, lambda z: z, r"got shape \(4, 2\)"),
        (X, X, lambda z: z.sum(), r"got shape \(\)"),
        (X, X, lambda z: z[:1, 0], r"got shape \(1,\)"),
        (X / 0, X, make_critic(4), "x must be finite"),
        (X, X * math.nan, make_critic(4), "y must be finite"),
        (X, X, lambda z: z[:, 0] * math.nan, "finite"),
    ],
)
def test_bad_input(function, x, y, critic, message):
    with pytest.raises(ValueError, match=message):
        function(x, y, critic)


def test_bad_input_of_one_function():
    with pytest.raises(ValueError, match="as many, got 4 and 3"):
        lp_reg(X, X[:3], make_critic(4))
    with pytest.raises(ValueError, match="ignores"):
        lp_reg(X, X, lambda z: torch.zeros(len(z)))
    with pytest.raises(ValueError, match="too large"):
        vf_squared_hellinger(X, X, lambda z: torch.full((len(z),), 100.0))
    with pytest.raises(ValueError, match="divergence must be one of"):
        variational_bound(X, X, make_critic(4), "Hellinger")
    for refused in (
        lambda: two_lines.estimates("kl", 0.5, make_critic(4), 10, 50.0),
        lambda: two_lines.measure("kl", 0.5, make_critic(4), 10),
        lambda: two_lines.generator_signal("kl", 0.5, make_critic(4)),
        lambda: critic_loss("kl", X, X, make_critic(4)),
    ):
        with pytest.raises(ValueError, match="objective must be one of"):
            refused()
    with pytest.raises(ValueError, match="samples must be at least 2, got 1"):
        two_lines.estimates("hellinger", 0.5, make_critic(4), 1, 50.0)
    for bad in ({"x": math.inf}, {"x": 0.0, "batch_size": 0}):
        with pytest.raises(ValueError, match="must be"):
            distribution1(**bad)


def test_line():
    points = next(distribution1(0.7, 10_000))
    assert points.shape == (10_000, 2) and points.dtype == torch.float32
    assert points[:, 0].eq(0.7).all() and points[:, 1].min() >= 0 and points[:, 1].max() < 1
    assert abs(points[:, 1].mean() - 0.5) < 0.02 and abs(points[:, 1].var() - 1 / 12) < 0.005
    assert len(next(distribution1(0.0))) == 512


# The run


def small(**changes):
    fields = {
        "hidden": 16,
        "steps": 6,
        "log_every": 4,
        "log_samples": 50,
        "eval_samples": 100,
        "batch_size": 32,
        "thetas": (0.0, 0.5),
        "kept": (0.5,),
    }
    return dataclasses.replace(two_lines.RECIPES["critics-lines"], **{**fields, **changes})


def test_run_and_its_evaluation(tmp_path):
    recipe = small()
    run = two_lines.train(recipe, Job(tmp_path / recipe.name, progress=False))
    assert (
        runs.validate(run.path, {"critics": [field.name for field in dataclasses.fields(recipe)]})
        == []
    )
    assert run.metrics["iteration"] == [0, 4, 6] and len(run.metrics) == 1 + 2 * 2
    again = two_lines.evaluate(run)
    assert {key: metric["value"] for key, metric in again.items()} == {
        key: metric["value"] for key, metric in run.record["metrics"].items()
    }
    assert (
        run.record["epochs_done"] == recipe.epochs == 6
        and not (run.path / "checkpoint.pt").exists()
    )
    built, nets = two_lines.build(run)
    assert built == recipe and set(nets) == {(kind, 0.5) for kind in OBJECTIVES}
    with pytest.raises(
        ValueError,
        match="no weights are kept of the critic .'wasserstein', 0.0.*there are: hellinger at 0.5",
    ):
        nets["wasserstein", 0.0]
    with pytest.raises(ValueError, match="draws no images: critics score points"):
        two_lines.sample(run, 4)


def keep(run, state):
    """Put other numbers into a record as if they were what was recorded: with their digest."""
    weights = run.path / run.record["weights"]["file"]
    runs.save_weights(weights, state, dtype=None)
    record = json.loads((run.path / "run.json").read_text("utf-8"))
    record["files"] = runs.file_digests(run.path)
    record["weights"]["sha256"] = record["files"][weights.name]
    runs.write_atomic(run.path / "run.json", json.dumps(record))


def test_evaluation_is_of_what_is_kept(tmp_path, monkeypatch):
    """Of every critic, the kept and the others; without a critic's weights, and never without its measurements."""
    recipe = small(kept=())
    run = two_lines.train(recipe, Job(tmp_path / recipe.name, progress=False))
    before = two_lines.evaluate(run)
    assert two_lines.build(run) == (recipe, {})
    monkeypatch.setattr(two_lines, "make_critic", None)
    assert two_lines.evaluate(run) == before == run.record["metrics"]

    state = runs.load_weights(run.weights)
    state["measured/wasserstein/0.5/p"] += 0.25  # f(x) in E f(x) - E f(y), at every height
    keep(run, state)
    found = dict(two_lines.evaluate(run))
    assert (
        found.pop("raw_error") != before["raw_error"]
        and found.pop("w1_error") != before["w1_error"]
    )
    assert found == {key: before[key] for key in ("hellinger_zero", "hellinger_least")}
    keep(run, {key: value for key, value in state.items() if "hellinger/0.5" not in key})
    with pytest.raises(ValueError, match="nothing is kept of the hellinger critic at 0.5"):
        two_lines.evaluate(run)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_estimates_from_what_is_kept_are_those_of_the_critic(objective):
    recipe = small(
        thetas=(0.5,), objectives=(objective,), steps=60, eval_samples=2_000, penalty=0.5
    )
    critic, _ = two_lines.train_critic(recipe, objective, 0.5)
    critic.half().float()  # as they are kept
    weights = {f"{objective}/0.5/{name}": value for name, value in critic.state_dict().items()}
    state = two_lines.what_is_kept(recipe, weights)
    (row,) = two_lines.final_estimates(recipe, two_lines.Critics(recipe, state))
    with own_randomness(recipe.seed + 2):
        direct = two_lines.estimates(objective, 0.5, critic, recipe.eval_samples, recipe.penalty)
    assert row == pytest.approx({"theta": 0.5, **direct}, rel=1e-4, abs=1e-6)
    kept = state[f"measured/{objective}/0.5/across"]
    factor = state[f"measured/{objective}/0.5/q"].exp() if objective == "hellinger" else 1
    assert -(factor * kept).mean().item() == pytest.approx(
        two_lines.generator_signal(objective, 0.5, critic), rel=1e-3
    )


def test_interrupted_run_goes_on_with_the_next_critic(tmp_path, monkeypatch):
    whole = two_lines.train(small(), Job(tmp_path / "whole", progress=False))
    train_critic, done = two_lines.train_critic, []

    def interrupted(recipe, objective, theta, device="cpu"):
        if len(done) == 3:
            raise KeyboardInterrupt
        done.append((objective, theta))
        return train_critic(recipe, objective, theta, device)

    monkeypatch.setattr(two_lines, "train_critic", interrupted)
    with pytest.raises(KeyboardInterrupt):
        two_lines.train(small(), Job(tmp_path / "parts", progress=False))
    assert (tmp_path / "parts.unfinished" / "checkpoint.pt").exists() and len(done) == 3
    done.clear()
    torch.rand(5)  # whatever happened in between
    parts = two_lines.train(small(), Job(tmp_path / "parts", progress=False))
    assert done == [("wasserstein", 0.5)]
    assert (parts.path / "model.safetensors").read_bytes() == (
        whole.path / "model.safetensors"
    ).read_bytes()
    assert (parts.path / "metrics.csv").read_text("utf-8") == (
        whole.path / "metrics.csv"
    ).read_text("utf-8")


def test_checkpoint_of_another_recipe_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(two_lines, "what_is_kept", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        two_lines.train(small(), Job(tmp_path, progress=False))
    with pytest.raises(ValueError, match="steps was '6', is '7'"):
        two_lines.train(small(steps=7), Job(tmp_path, progress=False))


@pytest.mark.parametrize(
    "changes",
    [
        {"optimizer": "adaam"},
        {"objectives": ("kl",)},
        {"objectives": ()},
        {"thetas": ()},
        {"precision": "bf16"},
        {"steps": 0},
        {"eval_samples": 1},
        {"data": "mnist"},
        {"kept": (0.1,)},
    ],
)
def test_recipe_refuses(changes):
    with pytest.raises(ValueError, match=next(iter(changes))):
        small(**changes)


def test_training_leaves_chance_alone():
    torch.manual_seed(3)
    expected = torch.rand(3)
    torch.manual_seed(3)
    two_lines.train_critic(small(), "wasserstein", 0.5)
    assert torch.equal(torch.rand(3), expected)


def test_a_signal_needs_points_and_kept_critics_are_among_the_trained():
    with pytest.raises(ValueError, match="samples must be at least 1"):
        two_lines.generator_signal("wasserstein", 0.5, make_critic(), samples=0)
    with pytest.raises(ValueError, match="kept must be among thetas.*set both"):
        dataclasses.replace(two_lines.RECIPES["critics-lines"], thetas=(0.5,))
