"""The training loop where a notebook can't test it: kills, interrupts, several processes, bad input."""

import ast
import dataclasses
import inspect
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import time

import numpy as np
import pytest
import torch
from torch import nn

from genbook import descent, players, training
from genbook.checkpoints import load_checkpoint, save_checkpoint, stop_on_interrupt
from genbook.players import Player
from genbook.training import fit


def toy(n=64, features=12):
    return torch.randint(
        0, 256, (n, features), generator=torch.Generator().manual_seed(1), dtype=torch.uint8
    )


def network(features=12):
    torch.manual_seed(2)
    return nn.Sequential(
        nn.Linear(features, 16),
        nn.BatchNorm1d(16),
        nn.ELU(),
        nn.Dropout(0.1),
        nn.Linear(16, features),
    )


def noisy(model, batch):
    """An objective that draws on every source of randomness."""
    x = batch.float() / 255
    x = x + 0.1 * torch.randn_like(x) + 0.1 * float(np.random.rand()) + 0.1 * random.random()
    loss = (model(x) - x).square().mean()
    return loss, {"half": loss / 2}


def plain(model, batch):
    x = batch.float() / 255
    loss = (model(x) - x).square().mean()
    return loss, {"twice": 2 * loss}


SETTINGS = dict(batch_size=8, lr=1e-2, device="cpu", progress=False)


def same(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def without_seconds(history):
    return [{key: value for key, value in row.items() if key != "seconds"} for row in history]


# Killed and resumed ---------------------------------------------------------------------------------------------------

KILLS = 30
LONG = dict(epochs=80, ema=0.9, schedule="one-cycle", clip=1.0, **SETTINGS)


def long_run(checkpoint, seconds, began, steps, result):
    """A run that says when it has done `steps` of its steps."""
    torch.set_num_threads(1)
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        if calls == steps + 1:
            began.send(None)
        return noisy(model, batch)

    done = fit(
        network(), objective, toy(), checkpoint=checkpoint, checkpoint_seconds=seconds,
        evaluate=lambda model, epoch: {"sum": float(sum(p.sum() for p in model.parameters())), "draw": float(torch.rand(()))},
        **LONG,
    )  # fmt: skip
    torch.save({"model": done.model.state_dict(), "history": without_seconds(done.history)}, result)


@pytest.fixture(scope="module")
def processes():
    """Makes processes that need not import torch: they are forks of one that has."""
    context = multiprocessing.get_context("forkserver")
    # Optimisers import torch._dynamo when they are first made: a second a child, were it not there already.
    context.set_forkserver_preload(["torch", "torch._dynamo", "genbook.training", "pytest"])
    return context


def test_thirty_kills_change_nothing(tmp_path, processes):
    context = processes
    undisturbed = context.Process(
        target=long_run, args=(None, None, None, -1, tmp_path / "undisturbed.pt")
    )
    undisturbed.start()

    chance = random.Random(0)
    folder = tmp_path / "run"
    folder.mkdir()
    checkpoint = folder / "checkpoint.pt"
    steps, while_writing = [], 0
    for kill in range(KILLS):
        ready, began = context.Pipe(duplex=False)
        seconds = 0.0 if kill % 2 else 0.02  # a checkpoint after every step, or now and then
        child = context.Process(
            target=long_run,
            args=(checkpoint, seconds, began, chance.randint(0, 12), tmp_path / "result.pt"),
        )
        child.start()
        assert ready.poll(60)
        time.sleep(chance.uniform(0, 0.03))
        os.kill(child.pid, signal.SIGKILL)
        child.join()
        assert child.exitcode == -signal.SIGKILL, "the run ended before it was killed"
        while_writing += bool(list(folder.glob(".*.tmp")))
        state = load_checkpoint(checkpoint)
        steps.append(state["step"] if state else 0)
    assert steps == sorted(steps) and len(set(steps)) > KILLS // 3, steps
    assert not (tmp_path / "result.pt").exists()
    assert steps[-1] < LONG["epochs"] * 8

    last = context.Process(
        target=long_run, args=(checkpoint, None, None, -1, tmp_path / "result.pt")
    )
    last.start()
    last.join()
    undisturbed.join()
    assert last.exitcode == undisturbed.exitcode == 0
    one, other = (torch.load(tmp_path / name) for name in ("undisturbed.pt", "result.pt"))
    assert one["history"] == other["history"]
    assert all(torch.equal(one["model"][key], other["model"][key]) for key in one["model"])
    assert not list(folder.glob(".*.tmp"))
    print(f"checkpoints at steps {steps}; {while_writing} of {KILLS} kills fell into a write")


# Interrupted ----------------------------------------------------------------------------------------------------------


def interrupted_at(step, objective=noisy):
    calls = 0

    def wrapped(model, batch):
        nonlocal calls
        calls += 1
        if calls == step:
            os.kill(os.getpid(), signal.SIGINT)
        return objective(model, batch)

    return wrapped


@pytest.fixture(scope="module")
def whole():
    """A run that nobody disturbed."""
    return fit(network(), noisy, toy(), epochs=3, ema=0.9, **SETTINGS)


@pytest.mark.parametrize("step", [1, 5, 8, 13, 24])  # within an epoch, at its end, at the run's end
def test_interrupted_and_resumed_is_the_undisturbed_run(tmp_path, whole, step):
    path = tmp_path / "c.pt"
    part = fit(
        network(), interrupted_at(step), toy(), epochs=3, ema=0.9, checkpoint=path, **SETTINGS
    )
    assert part.step == step and part.completed == (step == 24)
    if step < 24:
        assert (
            f"step {step} of 24" in part.message
            and "again" in part.message
            and str(path) in part.message
        )
    rest = fit(network(), noisy, toy(), epochs=3, ema=0.9, checkpoint=path, **SETTINGS)
    assert rest.completed and same(whole.model, rest.model)
    assert without_seconds(whole.history) == without_seconds(rest.history)
    assert rest.seconds >= part.seconds > 0  # the parts add up
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # put back


def test_another_number_of_threads_is_told(tmp_path, capsys):
    """Sums are added in another order then, so the promise of equal bits does not hold."""
    path, threads = tmp_path / "c.pt", torch.get_num_threads()
    arguments = dict(epochs=1, checkpoint=path, **SETTINGS)
    fit(network(), interrupted_at(2), toy(), **arguments)
    try:
        torch.set_num_threads(threads + 1)
        fit(network(), interrupted_at(2), toy(), **arguments)
        told = f"had {threads} threads and goes on with {threads + 1}"
        assert told in capsys.readouterr().err
        fit(network(), noisy, toy(), **arguments)
        assert "threads" not in capsys.readouterr().err
    finally:
        torch.set_num_threads(threads)


def pair():
    torch.manual_seed(2)
    return nn.ModuleDict({"left": network(), "right": nn.Linear(12, 12)})


def pair_players(stop_at=0):
    """Two players with noise in what they want; the second moves on every third batch."""
    left = lambda model, batch: noisy(model["left"], batch)

    def right(model, batch):
        x = model["left"](batch.float() / 255)
        loss = (model["right"](x) - torch.rand_like(x)).square().mean()
        return loss, {"spread": x.std()}

    return [Player("left", interrupted_at(stop_at, left)), Player("right", right, every=3)]


GAME = dict(epochs=3, ema=0.9, **SETTINGS)


@pytest.fixture(scope="module")
def whole_game():
    """A game that nobody disturbed."""
    return fit(pair(), pair_players(), toy(), **GAME)


@pytest.mark.parametrize("step", [2, 3, 8, 10])
def test_interrupted_game_is_resumed(tmp_path, whole_game, step):
    whole = whole_game
    part = fit(pair(), pair_players(step), toy(), checkpoint=tmp_path / "c.pt", **GAME)
    assert part.step == step and not part.completed
    rest = fit(pair(), pair_players(), toy(), checkpoint=tmp_path / "c.pt", **GAME)
    assert rest.completed and same(whole.model, rest.model)
    assert without_seconds(whole.history) == without_seconds(rest.history)
    assert {"train_left_loss", "train_half", "train_right_loss", "train_spread"} <= set(
        whole.history[0]
    )


def test_a_player_moves_its_part_alone():
    model, start = pair(), pair()
    fit(model, pair_players()[1:], toy(), epochs=1, weight_decay=0.1, **SETTINGS)
    assert all(map(torch.equal, model["left"].parameters(), start["left"].parameters()))
    assert not any(map(torch.equal, model["right"].parameters(), start["right"].parameters()))
    once, whole = pair(), pair()
    result = fit(
        once,
        [Player("", lambda model, batch: noisy(model["left"], batch))],
        toy(),
        epochs=1,
        **SETTINGS,
    )
    assert same(
        once,
        fit(
            whole, lambda model, batch: noisy(model["left"], batch), toy(), epochs=1, **SETTINGS
        ).model,
    )
    assert "train_loss" in result.history[0]  # a player of the whole model is no player


def test_on_step_sees_the_average_and_changes_nothing():
    seen = []

    def look(model, step):
        assert not model.training and not torch.is_grad_enabled()
        seen.append((step, torch.rand(1).item()))

    plainly = fit(network(), noisy, toy(), epochs=2, ema=0.9, **SETTINGS)
    watched = fit(
        network(), noisy, toy(), epochs=2, ema=0.9, on_step=([0, 3, 8, 16], look), **SETTINGS
    )
    assert same(plainly.model, watched.model) and [step for step, _ in seen] == [0, 3, 8, 16]
    assert len({value for _, value in seen}) == 4


@pytest.mark.parametrize(
    "players, told",
    [
        ([], "sequence of Players"),
        ([plain], "Sequence[Player]"),
        ([Player("lefd", plain)], "'left'"),
        ([Player("left", plain), Player("", plain)], "shares weights"),
        ([Player("left", plain, every=0)], "every must be at least 1"),
    ],
)
def test_bad_players_are_named(players, told):
    with pytest.raises(ValueError) as error:
        fit(pair(), players, toy(), epochs=1, **SETTINGS)
    assert told in str(error.value)


def test_second_interrupt_interrupts():
    with stop_on_interrupt() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)


def test_interrupt_without_checkpoint_says_so():
    assert (
        "nothing was saved"
        in fit(network(), interrupted_at(3), toy(), epochs=1, **SETTINGS).message
    )


def test_finished_run_is_not_trained_again(tmp_path):
    path = tmp_path / "c.pt"
    first = fit(network(), noisy, toy(), epochs=2, checkpoint=path, **SETTINGS)
    again = fit(network(), lambda model, batch: 1 / 0, toy(), epochs=2, checkpoint=path, **SETTINGS)
    assert again.completed and same(first.model, again.model) and again.history == first.history


# Checkpoints that must not be resumed ---------------------------------------------------------------------------------


def test_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "c.pt"
    fit(network(), noisy, toy(), epochs=1, checkpoint=path, fingerprint={"name": "a"}, **SETTINGS)
    for change, told in (
        (dict(lr=0.5), "lr was 0.01, is 0.5"),
        (dict(fingerprint={"name": "b"}), "fingerprint.name was 'a', is 'b'"),
        (dict(seed=3), "seed"),
        (dict(epochs=2), "epochs was 1, is 2"),
    ):
        settings = dict(epochs=1, fingerprint={"name": "a"}) | SETTINGS | change
        with pytest.raises(ValueError, match="resume=False") as error:
            fit(network(), noisy, toy(), checkpoint=path, **settings)
        assert told in str(error.value)
    afresh = fit(network(), noisy, toy(), epochs=2, checkpoint=path, resume=False, **SETTINGS)
    assert same(afresh.model, fit(network(), noisy, toy(), epochs=2, **SETTINGS).model)


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_broken_checkpoint_is_named(tmp_path, content):
    path = tmp_path / "c.pt"
    if content is None:  # the first half of a whole one
        fit(network(), noisy, toy(), epochs=1, checkpoint=path, **SETTINGS)
        content = path.read_bytes()[: path.stat().st_size // 2]
    path.write_bytes(content)
    with pytest.raises(ValueError, match="c.pt"):
        fit(network(), noisy, toy(), epochs=1, checkpoint=path, **SETTINGS)


def damaged(content, chance):
    """A file as a disk or a stranger may leave it: a bit, a sector, an end or a byte is other."""
    at = chance.randrange(len(content))
    return (
        content[:at] + bytes([content[at] ^ (1 << chance.randrange(8))]) + content[at + 1 :],
        content[:at] + bytes(512) + content[at + 512 :],
        content[:at],
        content[:at] + b"\0" + content[at:],
    )[chance.randrange(4)]


def test_no_damaged_checkpoint_is_read(tmp_path):
    path, chance = tmp_path / "c.pt", random.Random(0)
    fit(network(), interrupted_at(13), toy(), epochs=3, ema=0.9, checkpoint=path, **SETTINGS)
    content = path.read_bytes()
    for _ in range(200):
        path.write_bytes(other := damaged(content, chance))
        if other != content:  # a sector may have been zero
            with pytest.raises(ValueError, match="c.pt is not a whole checkpoint.*--no-resume"):
                load_checkpoint(path)


def with_one(state, /, **changes):
    return {**state, **changes}


def halved(weights):
    return dict(list(weights.items())[: len(weights) // 2])


MISFITS = {  # of a checkpoint after step 13 of 24, in the second epoch
    "step below 0": lambda s: with_one(s, step=-1),
    "step beyond the end": lambda s: with_one(s, step=10**9),
    "step of another epoch": lambda s: with_one(s, step=8),
    "step within another": lambda s: with_one(s, step=14),
    "step that is no count": lambda s: with_one(s, step=13.0),
    "step that is a truth value": lambda s: with_one(s, step=True),
    "seconds below 0": lambda s: with_one(s, seconds=-1.0),
    "no history": lambda s: with_one(s, history=[]),
    "a row too many": lambda s: with_one(s, history=s["history"] * 2),
    "a row of text": lambda s: with_one(s, history=[s["history"][0] | {"train_loss": "1"}]),
    "a row of another step": lambda s: with_one(s, history=[s["history"][0] | {"step": 9}]),
    "half of the weights": lambda s: with_one(s, model=halved(s["model"])),
    "half of the average": lambda s: with_one(s, averaged=halved(s["averaged"])),
    "weights in half precision": lambda s: with_one(
        s, model={name: value.half() for name, value in s["model"].items()}
    ),
    "weights that are not finite": lambda s: with_one(
        s, model={name: value / 0 for name, value in s["model"].items()}
    ),
    "weights of another shape": lambda s: with_one(
        s, model=s["model"] | {"0.weight": torch.zeros(12, 16)}
    ),
    "an average of other steps": lambda s: with_one(
        s, averaged=s["averaged"] | {"n_averaged": torch.tensor(3)}
    ),
    "no weights": lambda s: {key: value for key, value in s.items() if key != "model"},
    "no random numbers": lambda s: with_one(s, random=[]),
    "random numbers of another kind": lambda s: with_one(s, random=[{"torch": 3}]),
    "random numbers of zeros": lambda s: with_one(
        s, random=[s["random"][0] | {"torch": torch.zeros(3, dtype=torch.uint8)}]
    ),
    "no reports": lambda s: with_one(s, traces=[[]]),
    "reports of no step": lambda s: with_one(s, traces=[[s["traces"][0][0] * math.nan]]),
    "reports of zeros": lambda s: with_one(s, traces=[[torch.zeros(8, 2)]]),
    "reports of another kind": lambda s: with_one(s, traces=[3]),
    "players of another kind": lambda s: with_one(s, movers=[3]),
    "no players": lambda s: with_one(s, movers=[]),
    "nameless reports": lambda s: with_one(s, movers=[s["movers"][0] | {"names": []}]),
    "no memory": lambda s: remembering(s, state={}),
    "less memory": lambda s: remembering(s, state=halved(s["movers"][0]["optimizer"]["state"])),
    "memory of other shapes": lambda s: remembering(
        s, state={n: {"exp_avg": torch.zeros(1)} for n in range(6)}
    ),
    "other settings": lambda s: remembering(
        s, param_groups=[s["movers"][0]["optimizer"]["param_groups"][0] | {"betas": (0.5, 0.9)}]
    ),
    "settings of another kind": lambda s: remembering(s, param_groups=[3]),
    "another rate": lambda s: remembering(
        s, param_groups=[s["movers"][0]["optimizer"]["param_groups"][0] | {"lr": math.nan}]
    ),
    "something else besides": lambda s: with_one(s, more=1),
    "another fingerprint": lambda s: with_one(s, fingerprint={}),
    "no fingerprint": lambda s: with_one(s, fingerprint=[1]),
}


def remembering(state, /, **changes):
    mover = state["movers"][0]
    return with_one(state, movers=[mover | {"optimizer": mover["optimizer"] | changes}])


def test_a_whole_checkpoint_that_does_not_fit_is_refused(tmp_path):
    """The digest is right, and what it is of cannot have been kept by this run."""
    path, plan = tmp_path / "c.pt", dict(epochs=3, ema=0.9, **SETTINGS)
    fit(network(), interrupted_at(13), toy(), checkpoint=path, **plan)
    state = load_checkpoint(path)
    assert state["step"] == 13
    for what, change in MISFITS.items():
        save_checkpoint(path, change(state))
        with pytest.raises(ValueError, match=r"c\.pt .*resume=False") as error:
            fit(network(), noisy, toy(), checkpoint=path, **plan)
            pytest.fail(what)
        assert "\n" not in str(error.value) and path.exists()
    save_checkpoint(path, state)
    assert fit(network(), noisy, toy(), checkpoint=path, **plan).completed


def test_nan_stops_and_keeps_the_last_checkpoint(tmp_path):
    calls = 0

    def objective(model, batch):
        nonlocal calls
        calls += 1
        loss, metrics = noisy(model, batch)
        return (loss * math.nan if calls == 13 else loss), metrics

    path = tmp_path / "c.pt"
    with pytest.raises(FloatingPointError, match=r"step 13, learning rate 0\.01.*c\.pt"):
        fit(
            network(),
            objective,
            toy(),
            epochs=3,
            checkpoint=path,
            checkpoint_seconds=0.0,
            **SETTINGS,
        )
    state = load_checkpoint(path)
    assert state["step"] == 12 and all(value.isfinite().all() for value in state["model"].values())


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_evaluation_sees_the_average_and_changes_nothing():
    weights = []  # before each step

    def objective(model, batch):
        assert model.training and torch.is_grad_enabled()
        weights.append(model[0].weight.detach().clone())
        return noisy(model, batch)

    seen = {}

    def evaluate(model, epoch):
        assert not model.training and not torch.is_grad_enabled()
        torch.rand(7), np.random.rand(3), random.random()
        seen[epoch] = model[0].weight.clone()
        return {"draw": torch.rand(())}

    looked = fit(
        network(),
        objective,
        toy(),
        epochs=3,
        ema=0.8,
        evaluate=evaluate,
        on_epoch=evaluate,
        **SETTINGS,
    )
    unlooked = fit(network(), noisy, toy(), epochs=3, ema=0.8, **SETTINGS)
    assert same(looked.model, unlooked.model)
    assert [row["epoch"] for row in looked.history] == [0, 1, 2, 3]
    assert [row["epoch"] for row in unlooked.history] == [1, 2, 3]
    torch.testing.assert_close(seen[0], weights[0])
    after = weights[1:17]  # after each of the first two epochs' steps
    average = 0.8 ** (len(after) - 1) * after[0] + sum(
        0.2 * 0.8 ** (len(after) - 1 - t) * after[t] for t in range(1, len(after))
    )
    torch.testing.assert_close(seen[2], average)
    assert torch.equal(looked.model[0].weight, seen[3])


def test_history_and_log(tmp_path):
    result = fit(
        network(),
        plain,
        toy(),
        epochs=2,
        evaluate=lambda model, epoch: {"score": epoch * 2},
        log=tmp_path / "m.csv",
        **SETTINGS,
    )
    assert list(result.history[-1]) == [
        "epoch",
        "step",
        "lr",
        "seconds",
        "train_loss",
        "train_twice",
        "score",
    ]
    assert result.history[-1]["step"] == 16 and result.history[-1]["score"] == 4
    assert result.history[-1]["train_twice"] == pytest.approx(2 * result.history[-1]["train_loss"])
    assert len((tmp_path / "m.csv").read_text("utf-8").splitlines()) == 4


def test_a_line_an_epoch_without_a_terminal(capsys):
    fit(network(), plain, toy(), epochs=2, **SETTINGS | dict(progress=True))
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch 2/2") and "train_loss" in lines[1]


# Precision, devices, processes ----------------------------------------------------------------------------------------


def test_bf16_keeps_float32_weights(monkeypatch):
    monkeypatch.setattr("genbook.descent.has_bf16", lambda device: True)  # slow where it is not so
    types = []

    def objective(model, batch):
        types.append(model[0](batch.float()).dtype)
        return plain(model, batch)

    full = fit(network(), plain, toy(), epochs=3, **SETTINGS)
    half = fit(network(), objective, toy(), epochs=3, precision="bf16", **SETTINGS)
    assert set(types) == {torch.bfloat16} and all(
        p.dtype == torch.float32 for p in half.model.parameters()
    )
    assert half.history[-1]["train_loss"] == pytest.approx(full.history[-1]["train_loss"], rel=0.02)
    assert half.history[-1]["train_loss"] != full.history[-1]["train_loss"]


def test_without_instructions_for_bf16_products_are_in_float32(monkeypatch):
    monkeypatch.setattr("genbook.descent.has_bf16", lambda device: False)
    full = fit(network(), plain, toy(), epochs=3, **SETTINGS)
    asked = fit(network(), plain, toy(), epochs=3, precision="bf16", **SETTINGS)
    assert [row["train_loss"] for row in asked.history] == [
        row["train_loss"] for row in full.history
    ]
    with descent.in_precision("bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
    monkeypatch.setattr("genbook.descent.has_bf16", lambda device: True)
    with descent.in_precision("bf16"):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_channels_last_and_labels():
    images = torch.randint(0, 256, (32, 3, 8, 8), dtype=torch.uint8)
    labels = torch.arange(32) % 10

    def objective(model, batch):
        x, y = batch
        assert x.is_contiguous(memory_format=torch.channels_last)
        return nn.functional.cross_entropy(model(x.float() / 255), y), {}

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 10))
    result = fit(model, objective, (images, labels), epochs=2, channels_last=True, **SETTINGS)
    assert result.history[1]["train_loss"] < result.history[0]["train_loss"]


def gradient_run(out):
    """One step of plain gradient descent with learning rate 1, then two epochs of Adam, saved by the main process."""
    torch.set_num_threads(1)
    torch.manual_seed(2)
    model = nn.Sequential(nn.Linear(12, 16), nn.ELU(), nn.Linear(16, 12))
    start = {key: value.clone() for key, value in model.state_dict().items()}
    one = fit(
        model,
        plain,
        toy(),
        epochs=1,
        batch_size=64,
        lr=1.0,
        optimizer="sgd",
        device="cpu",
        progress=False,
    )
    gradient = {key: start[key] - value for key, value in model.state_dict().items()}
    two = fit(
        model,
        plain,
        toy(),
        epochs=2,
        evaluate=lambda model, epoch: {"x": epoch},
        checkpoint=f"{out}.checkpoint",
        **SETTINGS,
    )
    if int(os.environ.get("RANK", 0)) == 0:
        losses = [row["train_loss"] for row in one.history + two.history if row["epoch"]]
        torch.save({"gradient": gradient, "weights": model.state_dict(), "losses": losses}, out)


def one_of_two(rank, port, out, run=gradient_run, *more):
    """What a process does that `accelerate launch --multi_gpu --num_processes 2` started: these variables it sets."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}
    run(out, *more)
    torch.distributed.destroy_process_group()


def test_two_processes_have_the_gradient_of_one(tmp_path, processes):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    out = str(tmp_path / "two.pt")
    children = [processes.Process(target=one_of_two, args=(rank, port, out)) for rank in (0, 1)]
    for child in children:
        child.start()
    gradient_run(str(tmp_path / "one.pt"))
    for child in children:
        child.join(300)
    assert [child.exitcode for child in children] == [0, 0]
    one, two = (torch.load(tmp_path / f"{name}.pt") for name in ("one", "two"))
    torch.testing.assert_close(two["gradient"], one["gradient"], rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(two["weights"], one["weights"], rtol=1e-4, atol=1e-6)
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-5)
    assert (
        len(torch.load(tmp_path / "two.pt.checkpoint", weights_only=True)["random"]) == 2
    )  # a state a process


def game_run(out, die=0):
    """A game of two epochs with a checkpoint within each; the second of two processes may kill itself."""
    torch.set_num_threads(1)
    rank, calls = int(os.environ["RANK"]), 0

    def left(model, batch):
        nonlocal calls
        calls += 1
        if rank == 1 and calls == die:
            os.kill(os.getpid(), signal.SIGKILL)
        return noisy(model["left"], batch)

    def right(model, batch):
        loss, metrics = noisy(model["right"], batch)
        return loss, {"right_half": metrics["half"]}

    players = [Player("left", left), Player("right", right, every=3)]
    model = nn.ModuleDict({"left": network(), "right": network()})
    plan = dict(epochs=2, checkpoint=f"{out}.checkpoint", checkpoint_seconds=0.0, **SETTINGS)
    result = fit(model, players, toy(n=600), **plan)
    if rank == 0:
        kept = {"weights": model.state_dict(), "history": without_seconds(result.history)}
        torch.save(kept, out)


def test_two_processes_of_which_one_is_killed_log_what_two_undisturbed_log(tmp_path, processes):
    def together(name, die=0):
        out = str(tmp_path / name)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        children = [
            processes.Process(target=one_of_two, args=(rank, port, out, game_run, die))
            for rank in (0, 1)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(300)
        return [child.exitcode for child in children], out

    codes, undisturbed = together("undisturbed.pt")
    assert codes == [0, 0]
    codes, killed = together("killed.pt", die=60)
    assert codes[1] == -signal.SIGKILL and codes[0] != 0
    assert load_checkpoint(f"{killed}.checkpoint")["step"] == 50  # of 75 in the epoch
    codes, killed = together("killed.pt")
    assert codes == [0, 0]
    one, other = torch.load(undisturbed), torch.load(killed)
    assert one["history"] == other["history"] and len(one["history"]) == 2
    assert all(torch.equal(one["weights"][key], other["weights"][key]) for key in one["weights"])


# Arguments ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(batch_size=65), "batch_size is 65"),
        (dict(batch_size=0), "batch_size must be"),
        (dict(epochs=-1), "epochs must be"),
        (dict(lr=0), "lr must be"),
        (dict(lr=math.nan), "lr must be"),
        (dict(weight_decay=-1), "weight_decay must be"),
        (dict(schedule="cosin"), "'cosine'"),
        (dict(optimizer="adan"), "'adam'"),
        (dict(ema=1.0), "ema must be"),
        (dict(seed=-1), "seed must be"),
        (dict(precision="fp16"), "precision must be"),
        (dict(device="tpu"), "device must be"),
        (dict(clip=0), "clip must be"),
        (dict(checkpoint_seconds=-1), "checkpoint_seconds is -1"),
        (dict(data=torch.zeros(0, 12)), "data is empty"),
        (dict(data=(toy(), toy(8))), "different lengths"),
        (dict(data=[1, 2]), "data must be"),
    ],
)
def test_bad_arguments_are_named(change, told):
    settings = dict(epochs=1, data=toy()) | SETTINGS | change
    with pytest.raises(ValueError) as error:
        fit(network(), plain, settings.pop("data"), **settings)
    assert told in str(error.value)


def test_no_epochs_is_no_training():
    before = network()
    result = fit(
        network(), plain, toy(), epochs=0, evaluate=lambda model, epoch: {"x": 1.0}, **SETTINGS
    )
    assert result.completed and same(result.model, before) and len(result.history) == 1


def test_weights_are_loaded_without_running_code(tmp_path):
    path = tmp_path / "c.pt"
    fit(
        network(),
        noisy,
        toy(),
        epochs=1,
        ema=0.9,
        checkpoint=path,
        fingerprint={"a": [1, {"b": None}]},
        **SETTINGS,
    )
    state = torch.load(path, weights_only=True)
    assert json.dumps(state["fingerprint"])


# The shape of the code -----------------------------------------------------------------------------------------------


def test_the_loop_can_be_read_at_a_glance():
    """And `fit` with all that belongs to it is in functions under a hundred lines."""
    assert len(inspect.getsource(training.descend).splitlines()) < 60
    for module in (training, descent, players):
        for node in ast.walk(ast.parse(inspect.getsource(module))):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 100, node.name


def test_the_plan_is_the_core_of_the_fingerprint(tmp_path):
    path = tmp_path / "c.pt"
    fit(network(), noisy, toy(), epochs=1, checkpoint=path, fingerprint={"a": 1}, **SETTINGS)
    settings = {name: value for name, value in SETTINGS.items() if name != "progress"}
    plan = descent.Plan(epochs=1, **settings)
    stored = load_checkpoint(path)["fingerprint"]
    assert dataclasses.asdict(plan).items() <= stored.items() and stored["fingerprint.a"] == 1
