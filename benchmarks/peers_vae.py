"""A VAE of binary digits by pythae: an epoch of training, and log p(x) by importance sampling."""

import dataclasses
import logging
import tempfile

import common
import torch
from peers import recorded
from pythae.data.datasets import BaseDataset
from pythae.models import VAE, VAEConfig
from pythae.models.base.base_utils import ModelOutput
from pythae.models.nn import BaseDecoder, BaseEncoder
from pythae.trainers import BaseTrainer, BaseTrainerConfig

from genbook.vae import binarised_mnist as book
from genbook.vae import importance

logging.disable(logging.INFO)  # pythae tells much


class Encoder(BaseEncoder):
    """The layers of our encoder, as pythae wants to be answered."""

    def __init__(self, model):
        super().__init__()
        self.layers = model.encoder

    def forward(self, x):
        mean, log_variance = self.layers(x).chunk(2, dim=1)
        return ModelOutput(embedding=mean, log_covariance=log_variance)


class Decoder(BaseDecoder):
    """The layers of our decoder: pythae's likelihood wants means, not logits."""

    def __init__(self, model):
        super().__init__()
        self.layers, self.offset = model.decoder, model.logit_offset

    def forward(self, z):
        return ModelOutput(reconstruction=(self.layers(z) - self.offset).sigmoid())


def pythae_of(model):
    """A VAE of pythae with the very layers of one of ours."""
    config = VAEConfig(input_dim=(1, 28, 28), latent_dim=model.latent, reconstruction_loss="bce")
    return VAE(config, encoder=Encoder(model), decoder=Decoder(model))


def trainer_of(recipe, images, folder):
    """pythae's trainer, ready for its first epoch."""
    config = BaseTrainerConfig(
        output_dir=folder,
        num_epochs=1,
        learning_rate=recipe.lr,
        per_device_train_batch_size=recipe.batch_size,
        no_cuda=True,
    )
    dataset = BaseDataset(images.float(), torch.zeros(len(images)))
    trainer = BaseTrainer(pythae_of(recipe.model()), dataset, training_config=config)
    trainer.set_optimizer()
    trainer.set_scheduler()
    trainer._setup_callbacks()
    trainer.callback_handler.callbacks = trainer.callback_handler.callbacks[:1]  # no bar
    return trainer


def at_their_best(recipe, images):
    """pythae's model in a plain loop: no loader, one kernel for all of Adam."""
    model = pythae_of(recipe.model())
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)

    def epoch():
        for rows in torch.randperm(len(images)).split(recipe.batch_size):
            loss = model({"data": images[rows].float()}).loss
            adam.zero_grad()
            loss.backward()
            adam.step()

    return epoch


def ours(recipe, images):
    """An epoch as `genbook.training.fit` makes it, by its own parts."""
    model = recipe.model()
    adam = torch.optim.Adam(model.parameters(), lr=recipe.lr, fused=True)
    contender = common.Contender(model, common.book_loss(model, recipe.objective(), recipe), adam)

    def epoch():
        for rows in torch.randperm(len(images)).split(recipe.batch_size):
            contender.step(images[rows])

    return epoch


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return torch.cat([weights.grad.flatten() for weights in model.parameters()])


def vae(options, found):
    """The loss and its gradient by the same weights and noise; seconds of an epoch at batches of 64."""
    recipe = common.recipe("vae-bmnist", options.smoke)
    recipe = dataclasses.replace(recipe, precision="fp32")
    images = common.load(recipe.data, "train", options.data_root)
    model = recorded(book, "vae-bmnist", recipe, options.smoke).train()
    batch = images[:64]
    torch.manual_seed(0)
    theirs = pythae_of(model)({"data": batch.float()}).loss
    their_slope = gradients(model, theirs)
    torch.manual_seed(0)
    our_loss, _ = recipe.objective()(model, batch)
    our_slope = gradients(model, our_loss)
    found.value("VAE: loss in nats, pythae", theirs, our_loss, 1e-3)
    found.value(
        "VAE: gradient, of its largest, pythae", their_slope, our_slope, 1e-4, relative=True
    )

    few = images[: 640 if options.smoke else 12_800]
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(recipe, few, folder)
        ways = {
            "pythae's trainer": lambda: trainer.train_step(1),
            "pythae, in a plain loop": at_their_best(recipe, few),
            "book, fp32": ours(recipe, few),
        }
        found.time(f"VAE, {len(few):,} images", ways, options)
    return found


def likelihood(options, found):
    """log p(x) by the same draws; milliseconds with K = 200."""
    recipe = common.recipe("vae-bmnist", options.smoke)
    images = common.load(recipe.data, "test", options.data_root)
    model = recorded(book, "vae-bmnist", recipe, options.smoke)
    theirs, k = pythae_of(model).eval(), 200
    few = images[: 3 if options.smoke else 64]
    # Image by image, and 100 draws at once, both ask for the same random numbers. In spite of its
    # name `get_nll` gives the logarithm and not its negative.
    with torch.no_grad():
        torch.manual_seed(0)
        their_value = theirs.get_nll(few.float(), n_samples=k, batch_size=100)
    torch.manual_seed(0)
    our_value = importance.importance_log_likelihood(model, few, k, 1, 100).double().mean()
    found.value("log p(x) in nats, pythae", their_value, our_value, 1e-3)

    def by_pythae(batch_size):
        with torch.no_grad():
            theirs.get_nll(few.float(), n_samples=k, batch_size=batch_size)

    ways = {
        "pythae": lambda: by_pythae(100),
        "pythae, all draws at once": lambda: by_pythae(k),
        "book, fp32": lambda: importance.importance_log_likelihood(model, few, k),
    }
    found.time(f"log p(x), {len(few)} images", ways, options)
    return found
