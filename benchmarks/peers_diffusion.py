"""Diffusion models by diffusers and denoising-diffusion-pytorch: a training step of networks of about one size, and DDIM."""

import dataclasses
from functools import partial

import common
import torch
import torch.nn.functional as F
from denoising_diffusion_pytorch import GaussianDiffusion, Unet
from denoising_diffusion_pytorch.denoising_diffusion_pytorch import SinusoidalPosEmb
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.models.attention_processor import Attention
from peers import recorded

from genbook.descent import in_precision
from genbook.diffusion import ddpm
from genbook.diffusion.derivation import t_sample
from genbook.diffusion.sampling import sample_ddim
from genbook.diffusion.unet import sinusoidal_embedding
from genbook.images import scale_pixels

BOOK, DIFFUSERS, LUCIDRAINS = "book", "diffusers", "denoising-diffusion-pytorch"


def diffusers_loss(recipe):
    """Their network with our widths and a block at each size, since with two it is twice as large as ours; and its loss."""
    widths = [recipe.dim * mult for mult in recipe.mults]
    network = UNet2DModel(
        block_out_channels=widths, layers_per_block=1, norm_num_groups=min(32, *widths)
    )
    scheduler = DDPMScheduler(recipe.timesteps)

    def loss(x, t):
        noise = torch.randn_like(x)
        return F.mse_loss(network(scheduler.add_noise(x, noise, t), t).sample.float(), noise)

    return network, loss


def lucidrains_loss(recipe):
    network = Unet(recipe.dim, dim_mults=recipe.mults)
    return network, chain_of(recipe, network).p_losses


def chain_of(recipe, network):
    """Our schedule and parametrisation in denoising-diffusion-pytorch."""
    return GaussianDiffusion(
        network, image_size=32, timesteps=recipe.timesteps, objective="pred_noise",
        beta_schedule="linear", auto_normalize=False,
    )  # fmt: skip


def book_loss(recipe):
    model = recipe.model()
    return model.unet, partial(model.diffusion.p_losses, model.unet)


def step_of(make_loss, recipe, batch, at_best):
    """A network, and a training step of it: noise, prediction, error, Adam.

    At its best: half the precision where that pays, channels last, one kernel for all of Adam.
    """
    network, loss_of = make_loss(recipe)
    layout = torch.channels_last if at_best else torch.contiguous_format
    network.to(memory_format=layout)
    adam = torch.optim.Adam(network.parameters(), lr=recipe.lr, fused=at_best)

    def step():
        x = scale_pixels(batch).contiguous(memory_format=layout)
        with in_precision("bf16" if at_best else "fp32"):
            loss = loss_of(x, t_sample(recipe.timesteps, len(x)))
        adam.zero_grad()
        loss.backward()
        adam.step()

    return network, step


def same_noisy_images(found, recipe, model, batch):
    """x_t of the same images, noise and steps, by all three."""
    x, noise = scale_pixels(batch), torch.randn(len(batch), 3, 32, 32)
    t = t_sample(recipe.timesteps, len(x))
    ours = model.diffusion.q_sample(x, t, noise)
    found.value(f"x_t, {DIFFUSERS}", DDPMScheduler(recipe.timesteps).add_noise(x, noise, t), ours, 1e-5)  # fmt: skip
    scale = 1000 / recipe.timesteps  # their linear schedule is steeper where it is shorter
    if scale == 1:
        theirs = chain_of(recipe, Unet(8)).q_sample(x, t, noise)
        found.value(f"x_t, {LUCIDRAINS}", theirs, ours, 1e-5)


def same_layers(found, recipe, model):
    """Layers that are the same function in two libraries, by the same weights."""
    t = torch.arange(0, 1000, 7)
    theirs, ours = SinusoidalPosEmb(recipe.dim)(t), sinusoidal_embedding(t, recipe.dim)
    found.value(f"embedding of t, {LUCIDRAINS}", theirs, ours, 1e-4)  # of angles up to 1,000
    layer = model.unet.middle.attention
    channels = layer.norm.num_channels
    theirs = Attention(
        channels, heads=layer.heads, dim_head=layer.to_out.in_features // layer.heads,
        norm_num_groups=1, residual_connection=True,
    )  # fmt: skip
    with torch.no_grad():
        theirs.group_norm.load_state_dict(layer.norm.state_dict())
        theirs.to_out[0].load_state_dict(layer.to_out.state_dict())
        parts = layer.to_qkv.weight.chunk(3)
        for projection, weight in zip((theirs.to_q, theirs.to_k, theirs.to_v), parts, strict=True):
            projection.weight.copy_(weight)
        x = torch.randn(4, channels, 4, 4)
        found.value(f"attention of all pixels, {DIFFUSERS}", theirs(x), layer(x), 1e-5)


def unet(options, found):
    """A training step of the full network beside others of about its size, and its memory."""
    recipe = ddpm.RECIPES["ddpm-svhn"]
    recipe = recipe.smoke() if options.smoke else recipe
    images = common.load(recipe.data, "train", options.data_root)
    batch = images[: recipe.batch_size]
    ways = {
        f"{DIFFUSERS}": (diffusers_loss, False),
        f"{DIFFUSERS}, at its best": (diffusers_loss, True),
        f"{LUCIDRAINS}": (lucidrains_loss, False),
        f"{LUCIDRAINS}, at its best": (lucidrains_loss, True),
        f"{BOOK}, fp32": (book_loss, False),
        f"{BOOK}": (book_loss, True),
    }
    if options.memory_of:
        step_of(ways[options.memory_of][0], recipe, batch, ways[options.memory_of][1])[1]()
        return found
    torch.manual_seed(0)
    model = recorded(ddpm, "ddpm-svhn", recipe, options.smoke)
    same_noisy_images(found, recipe, model, batch[:16])
    same_layers(found, recipe, model)
    steps = {}
    for name, (make_loss, at_best) in ways.items():
        network, step = step_of(make_loss, recipe, batch, at_best)
        millions = sum(weights.numel() for weights in network.parameters()) / 1e6
        steps[name] = step
        found.notes[name] = f"{millions:.2f} M"
    found.time(f"U-Net's step, {len(batch)} images", steps, options, alone="unet")
    return found


def ddim(options, found):
    """The same network and noise through both samplers."""
    recipe = ddpm.RECIPES["ddpm-svhn-compact"]
    recipe = dataclasses.replace(recipe.smoke(), timesteps=40) if options.smoke else recipe
    model = recorded(ddpm, recipe.name, recipe, options.smoke)
    steps = recipe.timesteps // 20
    torch.manual_seed(0)
    x = model.noise(4)
    scheduler = DDIMScheduler(recipe.timesteps, clip_sample=False)
    scheduler.set_timesteps(steps)  # 980, 960, ..., 0

    def theirs():
        at = x
        with torch.no_grad():
            for t in scheduler.timesteps:
                noise = model.unet(at, t.expand(len(at)))
                at = scheduler.step(noise, t, at).prev_sample
        return at

    def ours():
        return sample_ddim(model.unet, model.diffusion, x, steps, first=recipe.timesteps - 20)

    found.value(f"DDIM, {steps} steps, {DIFFUSERS}", theirs(), ours(), 1e-4)
    ways = {f"{DIFFUSERS}' scheduler": theirs, BOOK: ours}
    found.time(f"DDIM, {len(x)} images, {steps} steps", ways, options)
    return found
