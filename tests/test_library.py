"""The package as a library: what people hand to it who have not read how it is made."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from genbook.fields import Count, Rate, check_value
from genbook.gan.critics import lp_reg, slopes_and_scores
from genbook.gan.smooth_layers import HalvingConv2d
from genbook.recipes import override
from genbook.selfsupervised.representations import knn_votes
from genbook.training import fit
from genbook.vae.binarised_mnist import VAERecipe
from genbook.vae.gaussian_model import DiagonalGaussianDistribution

# fit ------------------------------------------------------------------------------------------------------------------

X = torch.rand(8, 3, generator=torch.Generator().manual_seed(1))


def squared(model, batch):
    return (model(batch) - batch).square().mean()


def trained(objective=squared, data=X, **more):
    """The history of a short training, and the weights at its end."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    settings = dict(epochs=2, batch_size=2, lr=0.1, device="cpu", progress=False) | more
    history = fit(model, objective, data, **settings).history
    return [row["train_loss"] for row in history], history, model.weight.detach()


REFERENCE = trained()


def test_an_objective_may_return_its_loss_alone():
    losses, history, weight = trained(lambda model, batch: (squared(model, batch), {}))
    assert losses == REFERENCE[0] and torch.equal(weight, REFERENCE[2])
    assert history[0].keys() == REFERENCE[1][0].keys()


@pytest.mark.parametrize(
    "value", [1.5, 3, np.float32(1.5), np.int64(7), torch.tensor(0.25, dtype=torch.float64)]
)
def test_a_metric_may_be_any_number(value):
    _, history, weight = trained(lambda model, batch: (squared(model, batch), {"told": value}))
    assert [row["train_told"] for row in history] == [float(value)] * 2
    assert torch.equal(weight, REFERENCE[2])


def test_a_metric_that_is_a_number_stands_in_a_graph():
    def objective(model, batch):
        return squared(model, batch), {"told": 2.0}

    losses, history, _ = trained(objective, compile="eager")
    assert losses == pytest.approx(REFERENCE[0], rel=1e-5) and history[1]["train_told"] == 2.0


@pytest.mark.parametrize(
    "returned, told",
    [
        (lambda loss, x: (x * loss, {}), "loss must be a scalar: the mean of its (2, 3) values"),
        (lambda loss, x: loss.view(1), "loss must be a scalar: the mean of its (1,) values"),
        (lambda loss, x: loss.item(), "a loss, or a loss and a dict of metrics, got 0."),
        (lambda loss, x: (loss.item(), {}), "loss must be a tensor, got 0."),
        (lambda loss, x: {"loss": loss}, "a loss, or a loss and a dict of metrics, got {"),
        (lambda loss, x: None, "a loss, or a loss and a dict of metrics, got None"),
        (lambda loss, x: loss.detach(), "the loss must depend on the weights"),
        (lambda loss, x: (loss, {"a": x}), "a must be a scalar: the mean of its (2, 3) values"),
        (lambda loss, x: (loss, {"a": "b"}), "a must be a number, got 'b'"),
        (lambda loss, x: (loss, {"a": None}), "a must be a number, got None"),
    ],
)
def test_what_is_no_loss_and_no_metric_is_told(returned, told):
    with pytest.raises(ValueError) as error:
        trained(lambda model, batch: returned(squared(model, batch), batch))
    assert told in str(error.value)


def test_numbers_of_numpy_are_numbers():
    more = dict(epochs=np.int64(2), batch_size=np.int32(2), lr=np.float64(0.1), seed=np.uint8(0))
    assert trained(**more)[0] == REFERENCE[0]
    assert override(VAERecipe("x"), ["epochs=3"]).epochs == 3
    for value, kind, is_ in ((np.int64(3), Count, int), (np.float32(0.5), Rate, float)):
        assert type(check_value(value, kind, "it")) is is_
    features = torch.randn(20, 2, generator=torch.Generator().manual_seed(2))
    one = knn_votes(features, torch.arange(20) % 3, features, np.int64(4))
    assert torch.equal(one, knn_votes(features, torch.arange(20) % 3, features, 4))


@pytest.mark.parametrize("device", ["cpu", "cpu:0", torch.device("cpu"), torch.device("cpu", 0)])
def test_a_device_is_named_as_torch_names_it(device):
    assert trained(device=device)[0] == REFERENCE[0]


@pytest.mark.parametrize(
    "device, told",
    [
        ("cdua", "did you mean 'cuda'"),
        ("cuda:x", "must have the number of a card"),
        ("cpu:1", "here cpu has no number above 0"),
        (torch.device("meta"), "must be one of cpu, cuda, mps"),
        (f"cuda:{torch.cuda.device_count()}", "device is 'cuda"),
    ],
)
def test_a_device_that_is_not_there_is_told(device, told):
    with pytest.raises(ValueError, match=told):
        trained(device=device)


class Rows(Dataset):
    """Eight items, made one by one."""

    def __init__(self, *make):
        self.make = make

    def __len__(self):
        return 8

    def __getitem__(self, i):
        items = tuple(make(i) for make in self.make)
        return items if len(items) > 1 else items[0]


def test_a_dataset_is_stacked():
    assert trained(data=Rows(lambda i: X[i]))[0] == REFERENCE[0]
    assert trained(data=Rows(lambda i: X[i].numpy()))[0] == REFERENCE[0]
    for pairs in (TensorDataset(X, X), Rows(lambda i: X[i], lambda i: X[i]), (X, X)):
        assert trained(lambda model, batch: squared(model, batch[1]), pairs)[0] == REFERENCE[0]


@pytest.mark.parametrize(
    "data, told",
    [
        (
            torch.utils.data.DataLoader(Rows(lambda i: X[i])),
            "data must be .*Dataset, got DataLoader",
        ),
        (Rows(lambda i: torch.zeros(i + 1)), "items that can be stacked"),
        (Rows(lambda i: object()), "items that can be stacked"),
        (X.numpy(), "data must be Tensor .* got a NumPy array, float32 of shape"),
        (list(X), "data must be Tensor"),
    ],
)
def test_data_that_cannot_be_cut_are_told(data, told):
    with pytest.raises(ValueError, match=told):
        trained(data=data)


# Functions ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("channels", [3, 6])
@pytest.mark.parametrize("sides", [(7, 7), (9, 8), (5, 6), (3, 2)])
def test_a_convolution_halves_odd_sides_as_torch_does(channels, sides):
    ours, theirs = HalvingConv2d(channels, 5).double(), nn.Conv2d(channels, 5, 4, 2, 1).double()
    theirs.load_state_dict(ours.state_dict())
    found = []
    for layer in (ours, theirs):
        x = torch.randn(2, channels, *sides, generator=torch.Generator().manual_seed(1))
        x = x.double().requires_grad_()
        (g,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
        found.append([g, *torch.autograd.grad(g.square().sum(), list(layer.parameters()))])
    for mine, other in zip(*found):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_critics_slope_is_the_same_whatever_is_remembered(mode):
    torch.manual_seed(3)
    critic = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    critic[0].weight.data *= 10
    torch.manual_seed(4)
    expected = lp_reg(X, X.flip(0), critic).item()
    assert expected > 0.1
    torch.manual_seed(4)
    with mode():
        assert lp_reg(X, X.flip(0), critic).item() == expected
        made_here = (
            X + 0
        )  # where nothing is remembered, not even that there is something to remember
        slopes, _ = slopes_and_scores(critic, made_here)
    assert torch.equal(slopes, slopes_and_scores(critic, X)[0])


@pytest.mark.parametrize("kind", [torch.uint8, torch.int8, torch.int32, torch.int64])
def test_labels_are_whole_numbers_of_any_size(kind):
    labels = torch.arange(8) % 3
    votes = knn_votes(X, labels.to(kind), X[:3], k=4, classes=3)
    assert torch.equal(votes, knn_votes(X, labels, X[:3], k=4, classes=3))


@pytest.mark.parametrize(
    "given, told",
    [
        ((X, X[:3], torch.arange(8)), "labels must be Integer"),
        ((torch.arange(8), X, X), "bank must be Float"),
        ((X, torch.rand(8), X), "labels must be Integer"),
        ((X, np.arange(8), X), "labels must be .* got a NumPy array, int64 of shape"),
        ((X, torch.arange(7), X), "bank, labels and queries do not fit"),
    ],
)
def test_arguments_in_another_order_are_told(given, told):
    with pytest.raises(ValueError, match=told):
        knn_votes(*given, k=2)


def test_a_distribution_says_what_it_is():
    made = DiagonalGaussianDistribution(torch.full((4, 2), 0.5), torch.zeros(4, 2))
    assert repr(made) == "DiagonalGaussianDistribution((4, 2), mean 0.5, std 1 on average)"
    assert "(0, 2)" in repr(DiagonalGaussianDistribution(torch.zeros(0, 2)))
