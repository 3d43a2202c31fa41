"""Views of a batch of images: the book's augmentation of whole batches against torchvision's of single images, in one run.

python benchmarks/views.py            8 batches of 1,024 of each, by turns
python benchmarks/views.py --smoke    toy data and small batches, to see that it runs
"""

import argparse
import os
import time

import common
import torch
from torch.utils.data import DataLoader, Dataset

from genbook.data import import_torchvision
from genbook.selfsupervised.views import Augmentation

import_torchvision()
from torchvision import transforms  # noqa: E402 (torchvision imports only once it has been helped)


class PerImage(Dataset):
    """Images one at a time through torchvision's transforms of PIL images, as a reader would write it down."""

    def __init__(self, images):
        to_pil = transforms.ToPILImage()
        self.images = [
            to_pil(image) for image in images
        ]  # what a data set holds is not part of the time
        self.transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(32, scale=(0.08, 1)),
                transforms.RandomHorizontalFlip(),
                transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
                transforms.RandomGrayscale(0.2),
                transforms.ToTensor(),
            ]
        )

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.transform(self.images[index])


class Views:
    """A way to views of all images, a batch after the other; seconds and mean pixels of all passes so far."""

    def __init__(self, batches):
        self.batches, self.seconds, self.means = batches, [], []

    def one_pass(self):
        began = time.perf_counter()
        drawn = list(self.batches())
        self.seconds.append(time.perf_counter() - began)
        self.means += [batch.mean().item() for batch in drawn]


def loader(dataset, size, workers):
    """A loader whose workers stay, so that their start is only in the first pass."""
    return DataLoader(dataset, size, num_workers=workers, persistent_workers=workers > 0)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--smoke", action="store_true", help="toy data, 2 batches of 64")
    parser.add_argument("--batches", type=int, default=8, help="batches of 1,024 in a pass")
    parser.add_argument("--passes", type=int, default=5, help="passes of each that are timed")
    parser.add_argument(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes of the loader; all cores if not given",
    )
    parser.add_argument("--threads", type=int, help="threads of torch")
    parser.add_argument("--data-root", help="folder of the data sets")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    print(common.machine(), flush=True)
    size, batches, passes = (64, 2, 1) if options.smoke else (1024, options.batches, options.passes)
    images = common.load(
        "toy_house_numbers" if options.smoke else "cifar10", "train", options.data_root
    )
    images = images[: size * batches]
    augment, dataset = Augmentation(), PerImage(images)
    many, alone = loader(dataset, size, options.workers), loader(dataset, size, 0)
    several = f"torchvision, {options.workers} process{'es' if options.workers != 1 else ''}"
    contestants = {
        several: Views(lambda: many),
        "torchvision, in the loop": Views(lambda: alone),
        "book": Views(lambda: map(augment, images.split(size))),
    }
    for number in range(passes + 1):
        for views in contestants.values():
            views.one_pass()
            if number == 0:
                views.seconds.clear()  # to warm up
    print(f"\n{batches} batches of {size:,} images, {passes} passes of each by turns; medians.")
    base = common.median(contestants[several].seconds)
    lines = [["views", "ms a batch", "images a second", "times as fast", "mean pixel"]]
    for name, views in contestants.items():
        seconds, means = common.median(views.seconds), torch.tensor(views.means)
        error = means.std().item() / len(means) ** 0.5
        lines.append([
            name, f"{1e3 * seconds / batches:.1f}", f"{len(images) / seconds:,.0f}", f"{base / seconds:.2f}", f"{means.mean():.4f} ± {error:.4f}",
        ])  # fmt: skip
    common.table(lines)


if __name__ == "__main__":
    main()
