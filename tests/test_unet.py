"""The U-Net beyond what its chapter shows: shapes, layouts and precisions, attention against its naive form, bad input."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from genbook.diffusion.unet import (
    Attention,
    ConvBlock,
    LinearAttention,
    Middle,
    ResBlock,
    Stage,
    UNet,
    sinusoidal_embedding,
)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def tiny(**changes):
    return UNet(**{"dim": 8, "mults": (1, 2, 2, 4), "heads": 2, "head_dim": 4, **changes})


def test_parameters_are_those_of_the_assignment():
    unet = UNet()
    assert sum(p.numel() for p in unet.parameters()) == 8_074_051
    assert [stage.first.first.conv.out_channels for stage in unet.downs] == [32, 64, 128, 256]
    assert [stage.first.first.conv.in_channels for stage in unet.ups] == [512, 256, 128]
    norms = [part.num_groups for part in unet.modules() if isinstance(part, nn.GroupNorm)]
    assert sorted(set(norms)) == [1, 8]
    assert sum(isinstance(part, LinearAttention) for part in unet.modules()) == 7
    assert sum(isinstance(part, Attention) for part in unet.modules()) == 1
    assert not any(isinstance(part, (nn.BatchNorm2d, nn.Dropout)) for part in unet.modules())


@pytest.mark.parametrize(
    ("shape", "channels"), [((2, 3, 32, 32), 3), ((1, 1, 8, 8), 1), ((3, 4, 16, 40), 4)]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_has_the_shape_and_type_of_the_image(shape, channels, dtype):
    unet = tiny(channels=channels).to(dtype)
    x = torch.randn(shape, dtype=dtype)
    before = x.clone()
    out = unet(x, torch.arange(len(x)))
    assert out.shape == x.shape and out.dtype == dtype and out.isfinite().all()
    assert torch.equal(x, before)


def test_each_image_is_on_its_own():
    unet = tiny()
    x, t = torch.randn(4, 3, 16, 16), torch.tensor([0, 3, 500, 999])
    together = unet(x, t)
    for i in range(4):
        torch.testing.assert_close(
            unet(x[i : i + 1], t[i : i + 1]), together[i : i + 1], atol=1e-5, rtol=1e-4
        )
    torch.testing.assert_close(unet.eval()(x, t), together)
    assert not torch.allclose(unet(x, t), unet(x, t.flip(0)))


def test_layout_in_memory_does_not_matter():
    unet = tiny().double()
    x, t = torch.randn(3, 3, 16, 16).double(), torch.tensor([1, 50, 900])
    found = []
    for layout in (torch.contiguous_format, torch.channels_last):
        unet.to(memory_format=layout).zero_grad()
        out = unet(x.contiguous(memory_format=layout), t)
        out.square().sum().backward()
        found.append([out, *(p.grad.clone() for p in unet.parameters())])
    for one, other in zip(*found):
        torch.testing.assert_close(one, other)


def test_bf16_is_near_fp32():
    unet = UNet(dim=16)
    x, t = torch.randn(8, 3, 32, 32), torch.randint(0, 1000, (8,))
    exact = unet(x, t)
    grads = torch.autograd.grad(exact.square().mean(), list(unet.parameters()))
    unet.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        out = unet(x.contiguous(memory_format=torch.channels_last), t)
    assert out.dtype == torch.float32
    assert (out - exact).norm() < 0.03 * exact.norm()
    rounded = torch.autograd.grad(out.square().mean(), list(unet.parameters()))
    a, b = (torch.cat([g.flatten() for g in each]) for each in (rounded, grads))
    assert F.cosine_similarity(a, b, dim=0) > 0.99


def test_every_weight_is_used():
    unet = tiny()
    unet(torch.randn(2, 3, 16, 16), torch.tensor([5, 700])).square().sum().backward()
    for name, weight in unet.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


@pytest.mark.parametrize("dim", [4, 16, 32, 50])
def test_embedding(dim):
    t = torch.tensor([0, 1, 7, 999, 1499])
    found = sinusoidal_embedding(t, dim)
    assert found.shape == (5, dim) and found.dtype == torch.float32
    for row, step in zip(found, t.tolist()):
        for i in range(dim // 2):
            angle = step * 10_000 ** (-i / (dim // 2 - 1))
            assert (
                abs(row[i] - math.sin(angle)) < 1e-3
                and abs(row[dim // 2 + i] - math.cos(angle)) < 1e-3
            )
    torch.testing.assert_close(found.square().sum(1), torch.full((5,), dim / 2))


@pytest.mark.parametrize("dim", [0, 2, 7])
def test_embedding_refuses(dim):
    with pytest.raises(ValueError, match="dim must be even and at least 4"):
        sinusoidal_embedding(torch.tensor([1]), dim)


def naive_linear(layer, x):
    """Linear attention through the matrix of all pairs of pixels."""
    heads, d = layer.split
    pixels = layer.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (
        part(pixels).unflatten(2, (heads, d)).transpose(1, 2)
        for part in (layer.to_q, layer.to_k, layer.to_v)
    )
    pairs = q.softmax(3) @ k.softmax(2).transpose(2, 3) / d**0.5  # (B, heads, n, n)
    out = layer.to_out((pairs @ v).transpose(1, 2).flatten(2))
    return x + layer.norm_out(out.transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize(
    ("channels", "heads", "d", "sides"),
    [(8, 1, 4, (2, 2)), (12, 3, 5, (4, 6)), (16, 4, 32, (8, 8)), (5, 2, 1, (1, 3))],
)
def test_linear_attention_is_its_naive_form(channels, heads, d, sides):
    layer = LinearAttention(channels, heads, d).double()
    x = torch.randn(3, channels, *sides, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, channels, *sides).double()
    gradients = [
        torch.autograd.grad((form(x) * weight).sum(), [x, *layer.parameters()])
        for form in (layer, lambda x: naive_linear(layer, x))
    ]
    torch.testing.assert_close(layer(x), naive_linear(layer, x))
    for one, other in zip(*gradients):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("channels", "heads", "d", "sides"),
    [(8, 1, 4, (2, 2)), (12, 3, 5, (4, 6)), (16, 4, 32, (4, 4))],
)
def test_attention_is_that_of_torch(channels, heads, d, sides):
    layer = Attention(channels, heads, d).double()
    x = torch.randn(3, channels, *sides).double()
    q, k, v = layer.to_qkv(layer.norm(x).flatten(2).transpose(1, 2)).chunk(3, 2)
    q, k, v = (part.unflatten(2, (heads, d)).transpose(1, 2) for part in (q, k, v))
    taken = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
    torch.testing.assert_close(layer(x), x + layer.to_out(taken).transpose(1, 2).reshape(x.shape))


def test_attention_moves_with_the_pixels():
    """A permutation of the pixels permutes the result: position is known to the convolutions alone."""
    x, order = torch.randn(2, 8, 4, 4).double(), torch.randperm(16)
    shuffled = x.flatten(2)[..., order].reshape(x.shape)
    for layer in (Attention(8, 2, 4), LinearAttention(8, 2, 4)):
        layer = layer.double()
        torch.testing.assert_close(
            layer(shuffled), layer(x).flatten(2)[..., order].reshape(x.shape)
        )


def test_blocks():
    x, time = torch.randn(2, 8, 8, 8), torch.randn(2, 20)
    assert ConvBlock(8, 16, 8)(x).shape == (2, 16, 8, 8)
    told, untold = ResBlock(8, 8, 20, 8), ResBlock(8, 8, None, 8)
    untold.load_state_dict(told.state_dict(), strict=False)
    assert not torch.allclose(told(x, time), untold(x)) and isinstance(told.shortcut, nn.Identity)
    nn.init.zeros_(told.time.weight)
    nn.init.zeros_(told.time.bias)
    torch.testing.assert_close(told(x, time), untold(x))
    assert Stage(8, 16, 20, 8, 2, 4)(x, time).shape == (2, 16, 8, 8)
    assert Middle(8, 20, 8, 2, 4)(x, time).shape == (2, 8, 8, 8)


@pytest.mark.parametrize(
    "shape", [(2, 3, 28, 28), (2, 3, 32, 30), (2, 3, 4, 4), (2, 3, 0, 32), (2, 3, 12, 32)]
)
def test_sides_that_cannot_be_halved(shape):
    with pytest.raises(ValueError, match="multiples of 8, to be halved 3 times"):
        tiny()(torch.zeros(shape), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("shape", [(2, 1, 32, 32), (3, 32, 32), (2, 32, 32, 3)])
def test_other_channels(shape):
    with pytest.raises(ValueError, match=r"x must be of shape \(B, 3, h, w\)"):
        tiny()(torch.zeros(shape), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    "t",
    [
        torch.zeros(2),
        torch.zeros(3, dtype=torch.int64),
        torch.tensor(3),
        torch.zeros(2, 1, dtype=torch.int64),
        torch.zeros(2, dtype=torch.int32),
    ],
)
def test_no_such_steps(t):
    with pytest.raises(ValueError, match="t must be an int64 step for each of the 2 images"):
        tiny()(torch.zeros(2, 3, 8, 8), t)


def test_levels_are_no_real_numbers():
    with pytest.raises(ValueError, match="scale_pixels"):
        tiny()(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"mults": (1,)}, "at least two sizes"),
        ({"dim": 12}, "multiple of groups"),
        ({"mults": (0, 1)}, "multiple of groups"),
        ({"dim": 4, "mults": (1, 2)}, "multiple of groups"),
    ],
)
def test_no_such_network(changes, told):
    with pytest.raises(ValueError, match=told):
        tiny(**changes)
