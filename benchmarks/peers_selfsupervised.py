"""Learning without labels by lightly: views, a step of SimSiam, neighbours."""

import dataclasses

import common
import torch
import torch.nn.functional as F
from lightly.loss import NegativeCosineSimilarity
from lightly.models.modules import SimSiamPredictionHead, SimSiamProjectionHead
from lightly.transforms import SimCLRTransform
from lightly.utils.benchmarking.knn import knn_predict
from torch import nn
from torch.utils.data import DataLoader, Dataset

from genbook.data import import_torchvision
from genbook.descent import in_precision
from genbook.selfsupervised import simsiam as book
from genbook.selfsupervised.representations import knn_votes
from genbook.selfsupervised.views import MEAN, STD, Augmentation, normalise

torchvision = import_torchvision()


class PerImage(Dataset):
    """Two views of single PIL images by lightly's transform, with the strengths of ours."""

    def __init__(self, images, normalised=True):
        to_pil = torchvision.transforms.ToPILImage()
        self.images = [to_pil(image) for image in images]
        stats = {"mean": MEAN, "std": STD} if normalised else None
        self.transform = SimCLRTransform(
            input_size=32, cj_strength=0.5, gaussian_blur=0.0, normalize=stats
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


def loader(dataset, size, workers=0):
    return DataLoader(dataset, size, num_workers=workers, persistent_workers=workers > 0)


def cifar(options, n, split="train"):
    """So many images of CIFAR-10, or of its stand-in."""
    name = "toy_house_numbers" if options.smoke else "cifar10"
    return common.load(name, split, options.data_root)[:n]


def views(options, found):
    """Means and spreads of views, which are drawn at random; milliseconds of a batch of 1,024."""
    images = cifar(options, 128 if options.smoke else 1024)
    torch.manual_seed(0)
    theirs = torch.cat([torch.stack(pair) for pair in loader(PerImage(images, False), 256)], 1)
    augment = Augmentation()
    ours = torch.stack([augment(images), augment(images)])
    for name, statistic in (("mean", torch.mean), ("standard deviation", torch.std)):
        one, other = (statistic(some.flatten(2), dim=2).mean(0) for some in (theirs, ours))
        allowed = 4 * (one - other).std().item() / len(images) ** 0.5
        found.value(f"views: {name} of pixels, lightly", one.mean(), other.mean(), allowed)

    dataset = PerImage(images)
    many, alone = loader(dataset, len(images) // 4, 2), loader(dataset, len(images))
    ways = {
        "lightly, in the loop": lambda: list(alone),
        "lightly, 2 processes": lambda: list(many),
        "book": lambda: [normalise(augment(images)) for _ in range(2)],
    }
    found.time(f"two views of {len(images):,} images", ways, options)
    return found


class SimSiamOfLightly(nn.Module):
    """As lightly's tutorial puts it together, with the weights of one of ours."""

    def __init__(self, model, recipe):
        super().__init__()
        self.backbone = torchvision.models.resnet18()
        width = self.backbone.fc.in_features
        self.backbone.fc = SimSiamProjectionHead(width, width, recipe.dim)
        self.predictor = SimSiamPredictionHead(recipe.dim, recipe.pred_dim, recipe.dim)
        self.criterion = NegativeCosineSimilarity()
        move(self.backbone, model.encoder)
        move(self.predictor, model.predictor)

    def loss(self, x1, x2):
        z1, z2 = self.backbone(x1), self.backbone(x2)
        p1, p2 = self.predictor(z1), self.predictor(z2)
        return 0.5 * (self.criterion(p1, z2.detach()) + self.criterion(p2, z1.detach()))


def move(theirs, ours):
    """Give a network the weights of ours, in order.

    The outer weights of some filters only ever meet padding; ours has cut them off, and there they may be anything.
    """
    with torch.no_grad():
        for to, weight in zip(theirs.parameters(), ours.parameters(), strict=True):
            whole = to.shape == weight.shape
            inner = slice(1, 1 + weight.shape[-1])
            (to if whole else to[:, :, inner, inner]).copy_(weight)


def by_lightly(model, recipe, images, workers=0, at_best=False):
    """A pass over the images: a loader that draws views one by one, and plain SGD."""
    layout = torch.channels_last if at_best else torch.contiguous_format
    theirs = SimSiamOfLightly(model, recipe).to(memory_format=layout)
    sgd = torch.optim.SGD(theirs.parameters(), lr=recipe.lr, momentum=0.9, fused=at_best)
    batches = loader(PerImage(images), recipe.batch_size, workers)

    def one_pass():
        for x1, x2 in batches:
            with in_precision("bf16" if at_best else "fp32"):
                loss = theirs.loss(*(x.contiguous(memory_format=layout) for x in (x1, x2)))
            sgd.zero_grad()
            loss.backward()
            sgd.step()

    return one_pass


def by_the_book(recipe, images):
    model = recipe.model()
    sgd = torch.optim.SGD(model.parameters(), lr=recipe.lr, momentum=0.9, fused=True)
    contender = common.Contender(model, common.book_loss(model, recipe.objective(), recipe), sgd)

    def one_pass():
        for batch in images.split(recipe.batch_size):
            contender.step(batch)

    return one_pass


def simsiam(options, found):
    """The loss and its gradient by the same weights and views; a pass over images at batches of 256."""
    recipe = book.RECIPES["simsiam-cifar10"]
    recipe = recipe.smoke() if options.smoke else dataclasses.replace(recipe, batch_size=256)
    images = cifar(options, 2 * recipe.batch_size)
    torch.manual_seed(0)
    model, augment = recipe.model(), Augmentation()
    theirs = SimSiamOfLightly(model, recipe)
    x1, x2 = (normalise(augment(images[:64])) for _ in range(2))
    their_loss, our_loss = theirs.loss(x1, x2), model.training_loss(x1, x2)[0]
    found.value("SimSiam: loss, lightly", their_loss, our_loss, 1e-5)
    their_loss.backward()
    our_loss.backward()
    slopes = (net.conv1.weight.grad for net in (theirs.backbone, model.encoder))
    found.value(
        "SimSiam: gradient of the first filters, of its largest, lightly",
        *slopes,
        1e-3,
        relative=True,
    )

    ways = {
        "lightly, in the loop": by_lightly(model, recipe, images),
        "lightly, in the loop, at its best": by_lightly(model, recipe, images, at_best=True),
        "lightly, 2 processes, at its best": by_lightly(model, recipe, images, 2, True),
        "book, fp32": by_the_book(dataclasses.replace(recipe, precision="fp32", channels_last=False), images),
        "book": by_the_book(recipe, images),
    }  # fmt: skip
    found.time(f"SimSiam, {len(images):,} images", ways, options)
    return found


def knn(options, found):
    """Classes by 200 neighbours among the same features."""
    n, m, k = (500, 100, 20) if options.smoke else (20_000, 1_000, 200)
    torch.manual_seed(0)
    labels = torch.randint(10, (n,))
    centres = torch.randn(10, 512)
    bank, queries = (
        0.1 * centres[some] + torch.randn(len(some), 512).relu()
        for some in (labels, torch.randint(10, (m,)))
    )

    def theirs():
        normed = (F.normalize(x, dim=1) for x in (queries, bank))
        query, table = normed
        return knn_predict(query, table.T.contiguous(), labels, 10, knn_k=k, knn_t=0.1)[:, 0]

    def ours():
        return knn_votes(bank, labels, queries, k, 0.1).argmax(1)

    apart = (theirs() != ours()).double().mean()
    found.value("share of images that neighbours name otherwise, lightly", apart, 0.0, 1e-3)
    ways = {"lightly": theirs, "book": ours}
    found.time(f"neighbours of {m:,} images among {n:,}", ways, options)
    return found
