"""A DDPM's training step against the same in plain float32, in one run; and 64 samples by DDIM in 50 steps against all 1,000.

python benchmarks/ddpm_step.py            20 steps of each, alternating in blocks of 2, and the samples
python benchmarks/ddpm_step.py --smoke    toy data, a tiny network and a few steps, to see that it runs
"""

import dataclasses

import common
import torch
from torch import nn

from genbook.diffusion import ddpm
from genbook.diffusion.derivation import t_sample
from genbook.diffusion.sampling import sample_ddim
from genbook.diffusion.unet import LinearAttention
from genbook.images import scale_pixels

BLOCK = 2  # steps of one before the other takes its turn


class PlainLinearAttention(nn.Module):
    """Linear attention as it is usually written: queries, keys and values of all pixels, channels first."""

    def __init__(self, ours):
        super().__init__()
        self.split, self.norm, self.norm_out = ours.split, ours.norm, ours.norm_out
        channels, hidden = ours.to_q.in_features, ours.to_q.out_features
        self.to_qkv = nn.Conv2d(channels, 3 * hidden, 1, bias=False)
        self.to_out = nn.Conv2d(hidden, channels, 1)
        with torch.no_grad():
            filters = torch.cat([layer.weight for layer in (ours.to_q, ours.to_k, ours.to_v)])
            self.to_qkv.weight.copy_(filters[:, :, None, None])
            self.to_out.weight.copy_(ours.to_out.weight[:, :, None, None])
            self.to_out.bias.copy_(ours.to_out.bias)

    def forward(self, x):
        q, k, v = self.to_qkv(self.norm(x)).flatten(2).unflatten(1, (3, *self.split)).unbind(1)
        q = q.softmax(dim=2) * self.split[1] ** -0.5
        averages = torch.einsum("bhdn,bhen->bhde", k.softmax(dim=3), v)
        taken = torch.einsum("bhde,bhdn->bhen", averages, q).flatten(1, 2)
        return x + self.norm_out(self.to_out(taken.unflatten(2, x.shape[2:])))


def plain(recipe):
    """The step as it would be written down from the formulas."""
    model = recipe.model()
    for part in list(model.unet.modules()):
        for name, child in part.named_children():
            if isinstance(child, LinearAttention):
                setattr(part, name, PlainLinearAttention(child))
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr)

    def loss(batch):
        x, t = scale_pixels(batch), t_sample(recipe.timesteps, len(batch))
        return model.diffusion.p_losses(model.unet, x, t)

    return common.Contender(model, loss, adam)


def ours(recipe):
    model = recipe.model()
    loss = common.book_loss(model, recipe.objective(), recipe)
    return common.Contender(
        model, loss, torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    )


def sampling(recipe, clock, n):
    """Seconds of `n` images by DDIM and by all steps, in float32."""
    model, found = recipe.model().eval(), {}
    x = model.noise(n)
    few = min(50, recipe.timesteps // 2)
    for name, draw in (
        (f"DDIM, {few} steps", lambda: sample_ddim(model.unet, model.diffusion, x, few)),
        (f"ancestral, {recipe.timesteps:,} steps", lambda: model.sample_ancestral(n)),
    ):
        began = clock()
        draw()
        found[name] = clock() - began
    return found


def main():
    parser = common.step_options(__doc__, 20, "toy data, a tiny network, 4 steps")
    parser.add_argument(
        "--recipe", default="ddpm-svhn-compact", help="ddpm-svhn for the full network"
    )
    parser.add_argument(
        "--samples", type=int, default=64, help="images to draw by each sampler; 0 for none"
    )
    options = parser.parse_args()
    clock = common.set_up(options)
    recipe = ddpm.RECIPES[options.recipe]
    recipe = recipe.smoke() if options.smoke else recipe
    fp32 = dataclasses.replace(recipe, precision="fp32", channels_last=False)
    contenders = {
        "plain, fp32": plain(fp32),
        "book, fp32": ours(fp32),
        "book, bf16": ours(dataclasses.replace(recipe, channels_last=False)),
        "book, bf16, channels last": ours(recipe),
    }
    parameters = sum(p.numel() for p in contenders["plain, fp32"].model.parameters())
    print(f"{parameters / 1e6:.2f} million parameters")
    steps = 2 * BLOCK if options.smoke else options.steps
    common.take_turns(contenders, recipe, steps, BLOCK, clock, options.data_root)
    common.report(contenders, "plain, fp32", last=steps, digits=4)
    n = 4 if options.smoke else options.samples
    if n:
        print()
        seconds = sampling(recipe, clock, n)
        slowest = max(seconds.values())
        lines = [[f"{n} samples", "seconds", "times as fast"]]
        lines += [
            [name, f"{value:.2f}", f"{slowest / value:.1f}"] for name, value in seconds.items()
        ]
        common.table(lines)


if __name__ == "__main__":
    main()
