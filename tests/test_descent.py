"""What is decided before the first step: schedules, the order of the images, and plans that check themselves."""

import json
import math
from dataclasses import FrozenInstanceError, asdict, fields

import pytest
import torch

from genbook.descent import OPTIMIZERS, SCHEDULES, Batches, Plan, epoch_order, make_accelerator


def plan(**changes):
    return Plan(**dict(epochs=1, batch_size=8, lr=1e-2, device="cpu") | changes)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_stay_in_range(name):
    factors = [SCHEDULES[name](i / 1000) for i in range(1001)]
    assert min(factors) >= 0 and max(factors) == pytest.approx(1, abs=1e-4)
    assert max(abs(a - b) for a, b in zip(factors, factors[1:])) < 0.01


def test_order_is_a_permutation_of_seed_and_epoch():
    order = epoch_order(100, 3, 5)
    assert torch.equal(order.sort().values, torch.arange(100))
    assert torch.equal(order, epoch_order(100, 3, 5))
    assert not torch.equal(order, epoch_order(100, 3, 6))
    assert not torch.equal(order, epoch_order(100, 5, 3))


@pytest.mark.parametrize(
    "change, told",
    [
        (dict(epochs=-1), "epochs must be at least 0, got -1"),
        (dict(batch_size=0), "batch_size must be at least 1, got 0"),
        (dict(lr=0), "lr must be at least 1e-12, got 0"),
        (dict(lr=math.inf), "lr must be a finite number, got inf"),
        (dict(optimizer="adan"), "optimizer must be one of adam, "),
        (dict(weight_decay=-1), "weight_decay must be at least 0, got -1"),
        (dict(schedule="cosin"), "did you mean 'cosine'?"),
        (dict(ema=1.0), "ema must be below 1, got 1.0"),
        (dict(seed=-1), "seed must be at least 0, got -1"),
        (dict(precision="fp16"), "precision must be one of fp32, bf16; "),
        (dict(device="tpu"), "device must be one of cpu, cuda, mps"),
        (dict(clip=0), "clip must be above 0, got 0"),
        (dict(epochs=1.5), "epochs must be a whole number, got 1.5"),
        (dict(epochs=True), "epochs must be a whole number, got True"),
        (dict(epochs=math.nan), "epochs must be a whole number, got nan"),
        (dict(epochs=math.inf), "epochs must be a whole number, got inf"),
        (dict(batch_size="8"), "batch_size must be a whole number, got '8'"),
        (dict(ema=math.nan), "ema must be a finite number, got nan"),
        (dict(clip=math.inf), "clip must be a finite number, got inf"),
        (dict(optimizer=None), "optimizer must be a text, got None"),
        (dict(schedule=["constant"]), "schedule must be a text, got ['constant']"),
        (dict(device=3), "device must be a text, got 3"),
    ],
)
def test_a_plan_refuses_what_cannot_be_done(change, told):
    with pytest.raises(ValueError) as error:
        plan(**change)
    assert told in str(error.value) and next(iter(change)) in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="torch finds no card here"):
        plan(device="cuda")


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_plan_as_a_dict_is_json_and_a_plan_again(optimizer):
    made = plan(optimizer=optimizer, ema=0.9, clip=1.0, schedule="cosine")
    kept = json.loads(json.dumps(asdict(made)))
    assert kept.keys() == {field.name for field in fields(Plan)}
    assert Plan(**kept) == made


def test_a_plan_is_not_changed():
    with pytest.raises(FrozenInstanceError):
        plan().lr = 1.0


def test_batches_are_those_of_the_order_and_go_on_where_they_stopped():
    data, labels = torch.arange(20), torch.arange(20) % 3
    batches = Batches((data, labels), plan(seed=3), make_accelerator("cpu"))
    assert batches.steps == 2  # what the epoch leaves over is dropped
    for epoch in (1, 2):
        seen = list(batches.rest_of_epoch(2 * (epoch - 1)))
        order = epoch_order(20, 3, epoch)
        assert torch.equal(torch.cat([x for x, _ in seen]), order[:16])
        assert all(torch.equal(y, x % 3) for x, y in seen)
        (rest,) = batches.rest_of_epoch(2 * epoch - 1)
        assert torch.equal(rest[0], seen[1][0])
