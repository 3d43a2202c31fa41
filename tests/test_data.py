"""Data files as users have them, damaged and sound, and downloads from a server that misbehaves.

Every file is made here, and small: the sizes in `DATASETS` are replaced for the test. Nothing needs the network. The
last tests read the real sets, where `GENBOOK_DATA` says that they are.
"""

import dataclasses
import gzip
import hashlib
import io
import math
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from genbook import data
from genbook.data import (
    DATASETS,
    DataError,
    Splits,
    check,
    digest,
    fetch,
    fetching,
    find,
    load,
    loading,
    parse_amat,
    provenance,
    reading,
)

REAL_DATA = os.environ.get("GENBOOK_DATA")
SIZES = {"train": 20, "valid": 6, "test": 5}


@pytest.fixture(autouse=True)
def no_data(tmp_path, monkeypatch):
    """A machine without data: an empty cache, no `GENBOOK_DATA`, and no way to the publishers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GENBOOK_DATA", raising=False)
    monkeypatch.setattr(fetching, "_BINARIZED", ("http://127.0.0.1:9/{part}.amat",))


def sha256(*arrays):
    return hashlib.sha256(
        b"".join(array.astype(np.uint8).tobytes() for array in arrays)
    ).hexdigest()


def small(name, monkeypatch, **changes):
    """Let a data set be published in the sizes of the tests."""
    original = DATASETS[name]
    sizes = {part: SIZES[part] for part in original.published}
    held_out = 6 if original.held_out else 0
    replaced = dataclasses.replace(
        original, **({"published": sizes, "held_out": held_out, "digests": {}} | changes)
    )
    monkeypatch.setitem(DATASETS, name, replaced)
    return replaced


def arrays(name, part, seed=0):
    """Random images and labels for a part in the test's size."""
    rng = np.random.default_rng([seed, len(part)])
    shape = (SIZES[part], *DATASETS[name].shape)
    if name == "binarized_mnist":
        return rng.integers(0, 2, shape, dtype=np.uint8), None
    return rng.integers(0, 256, shape, dtype=np.uint8), np.arange(SIZES[part]) % 10


def digests_of(name):
    """SHA-256 of each split of a set in the test's sizes."""
    digests = {}
    for part in DATASETS[name].published:
        images, labels = arrays(name, part)
        cut = len(images) - (6 if part == "train" and DATASETS[name].held_out else 0)
        for split, rows in ((part, slice(None, cut)), ("valid", slice(cut, None))):
            if len(images[rows]):
                digests[split] = sha256(*(a[rows] for a in (images, labels) if a is not None))
    return digests


def amat(images):
    return b"".join(
        b" ".join(b"%d" % v for v in row) + b" \n" for row in images.reshape(len(images), -1)
    )


def idx(array):
    return (
        bytes([0, 0, 8, array.ndim])
        + b"".join(n.to_bytes(4, "big") for n in array.shape)
        + array.tobytes()
    )


def mnist_files():
    files = {}
    for part, stem in (("train", "train"), ("test", "t10k")):
        images, labels = arrays("mnist", part)
        files[f"{stem}-images-idx3-ubyte"] = idx(images[:, 0])
        files[f"{stem}-labels-idx1-ubyte"] = idx(labels.astype(np.uint8))
    return files


def svhn_mat(part):
    import scipy.io

    images, labels = arrays("svhn", part)
    buffer = io.BytesIO()
    published_labels = np.where(labels == 0, 10, labels)[:, None].astype(np.uint8)
    scipy.io.savemat(buffer, {"X": images.transpose(2, 3, 1, 0), "y": published_labels})
    return buffer.getvalue()


def cifar_files():
    files = {"batches.meta": pickle.dumps({"label_names": list("abcdefghij")})}
    images, labels = arrays("cifar10", "train")
    for i in range(5):
        rows = slice(4 * i, 4 * i + 4)
        content = {"data": images[rows].reshape(4, -1), "labels": labels[rows].tolist()}
        files[f"data_batch_{i + 1}"] = pickle.dumps(content)
    images, labels = arrays("cifar10", "test")
    files["test_batch"] = pickle.dumps({"data": images.reshape(5, -1), "labels": labels.tolist()})
    return files


def md5(content):
    return hashlib.md5(content).hexdigest()


def known_to_torchvision(monkeypatch, base="http://127.0.0.1:9"):
    """Let torchvision's classes know the test's files by their sums, and look for them at `base`; returns its files."""
    data.import_torchvision()
    from torchvision import datasets

    served = {}
    resources = []
    for name, content in mnist_files().items():
        served[f"{name}.gz"] = gzip.compress(content)
        resources.append((f"{name}.gz", md5(served[f"{name}.gz"])))
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"{base}/"])
    monkeypatch.setattr(datasets.MNIST, "resources", resources)

    split_list = {}
    for part in ("train", "test"):
        served[f"{part}_32x32.mat"] = svhn_mat(part)
        split_list[part] = [
            f"{base}/{part}_32x32.mat",
            f"{part}_32x32.mat",
            md5(served[f"{part}_32x32.mat"]),
        ]
    monkeypatch.setattr(datasets.SVHN, "split_list", split_list)

    files = cifar_files()
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    served["cifar-10-python.tar.gz"] = buffer.getvalue()
    monkeypatch.setattr(datasets.CIFAR10, "url", f"{base}/cifar-10-python.tar.gz")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(buffer.getvalue()))
    sums = {name: md5(content) for name, content in files.items()}
    monkeypatch.setattr(
        datasets.CIFAR10,
        "train_list",
        [[f"data_batch_{i}", sums[f"data_batch_{i}"]] for i in range(1, 6)],
    )
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", sums["test_batch"]]])
    monkeypatch.setattr(
        datasets.CIFAR10, "meta", datasets.CIFAR10.meta | {"md5": sums["batches.meta"]}
    )
    return served


def write(folder, files):
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def write_torchvision(name, root, monkeypatch):
    """The publisher's files of a small set, as torchvision keeps them; returns one file of the training part."""
    served = known_to_torchvision(monkeypatch)
    if name == "mnist":
        return write(root / "MNIST" / "raw", mnist_files()) / "train-images-idx3-ubyte"
    if name == "svhn":
        return (
            write(root, {file: served[file] for file in ("train_32x32.mat", "test_32x32.mat")})
            / "train_32x32.mat"
        )
    return write(root / "cifar-10-batches-py", cifar_files()) / "data_batch_3"


def encode(image, kind="PNG"):
    buffer = io.BytesIO()
    pixels = image.transpose(1, 2, 0)
    Image.fromarray(pixels if len(image) == 3 else pixels[..., 0]).save(buffer, kind)
    return buffer.getvalue()


def write_parquet(
    name, folder, kind="PNG", shards=1, column="image", parts=("train", "test"), bytes_of=None
):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder.mkdir(parents=True, exist_ok=True)
    for part in parts:
        images, labels = arrays(name, part)
        encoded = bytes_of or [encode(image, kind) for image in images]
        rows = [{"bytes": content, "path": f"{i}.png"} for i, content in enumerate(encoded)]
        for i, block in enumerate(np.array_split(np.arange(len(rows)), shards)):
            table = pa.table(
                {column: [rows[j] for j in block], "label": [int(labels[j]) for j in block]}
            )
            pq.write_table(table, folder / f"{part}-{i:05d}-of-{shards:05d}.parquet")


def assert_is(split, images, labels):
    assert split.images.dtype == torch.uint8 and split.images.is_contiguous()
    np.testing.assert_array_equal(split.images.numpy(), images)
    if labels is None:
        assert split.labels is None
    else:
        assert split.labels.dtype == torch.int64
        np.testing.assert_array_equal(split.labels.numpy(), labels)


def files_below(folder):
    return sorted(
        str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()
    )


# ---- the .amat text files


def test_amat_reads_back_what_was_written():
    rows = np.random.default_rng(0).integers(0, 2, (7, 784), dtype=np.uint8)
    np.testing.assert_array_equal(parse_amat(amat(rows)), rows)
    np.testing.assert_array_equal(
        parse_amat(amat(rows).replace(b" \n", b"\n").rstrip()), rows
    )  # no blank, no last newline
    np.testing.assert_array_equal(parse_amat(amat(rows).replace(b"\n", b"\r\n") + b"\n\n"), rows)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"0 1 0\n0 2 1\n", "byte 8 is '2'"),
        (b"0 1 0\n0 1\n", "line 2 has 2 values where 3"),
        (b"0 1 0 1\n0 1 0\n", "line 1 has 4 values"),
        (b"0 10\n", "byte 3 stands where a blank"),
        (b"<html>404</html>", "'<' where 0 or 1"),
    ],
)
def test_amat_says_where_the_text_is_wrong(text, message):
    with pytest.raises(ValueError, match=message):
        parse_amat(text, 3)


@pytest.mark.parametrize("folder", ["binarized_mnist", "."])
def test_published_text_files_are_read_and_cached(tmp_path, monkeypatch, folder):
    small("binarized_mnist", monkeypatch)
    for part in SIZES:
        write(
            tmp_path / "root" / folder,
            {f"binarized_mnist_{part}.amat": amat(arrays("binarized_mnist", part)[0])},
        )
        assert_is(
            load("binarized_mnist", part, tmp_path / "root"), *arrays("binarized_mnist", part)
        )
    assert len(files_below(tmp_path / "cache")) == 3
    both = load("binarized_mnist", "train+valid", tmp_path / "root")
    expected = np.concatenate([arrays("binarized_mnist", part)[0] for part in ("train", "valid")])
    assert_is(both, expected, None)


def test_a_text_file_cut_off_is_named_and_leaves_no_cache(tmp_path, monkeypatch):
    small("binarized_mnist", monkeypatch)
    text = amat(arrays("binarized_mnist", "train")[0])
    for cut in (len(text) // 2, len(text) - 1569):  # within a row, and between two
        write(tmp_path / "root", {"binarized_mnist_train.amat": text[:cut]})
        with pytest.raises(
            DataError, match="binarized_mnist_train.amat.*genbook data fetch binarized_mnist"
        ):
            load("binarized_mnist", "train", tmp_path / "root")
    assert files_below(tmp_path) == ["root/binarized_mnist_train.amat"]


# ---- the package's own archive


def test_archive_is_read_and_its_content_checked(tmp_path, monkeypatch):
    parts = {part: arrays("binarized_mnist", part)[0] for part in SIZES}
    digests = {part: sha256(images) for part, images in parts.items()}
    small("binarized_mnist", monkeypatch, digests=digests)
    path = tmp_path / "binarized_mnist" / "binarized_mnist.npz"
    path.parent.mkdir()
    np.savez_compressed(
        path, **{part: images.reshape(len(images), -1) for part, images in parts.items()}
    )
    assert_is(load("binarized_mnist", "valid", tmp_path), parts["valid"], None)
    assert digest("binarized_mnist", "valid", tmp_path) == digests["valid"]
    assert check("binarized_mnist", tmp_path)["splits"]["train"]["verdict"] == "as published"

    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(DataError, match="binarized_mnist.npz: cannot be read"):
        load("binarized_mnist", "valid", tmp_path)
    np.savez_compressed(path, **(parts | {"valid": 1 - parts["valid"]}))
    with pytest.raises(DataError, match="not the published one"):
        load("binarized_mnist", "valid", tmp_path)
    np.savez_compressed(path, train=parts["train"])
    with pytest.raises(DataError, match="binarized_mnist.npz: cannot be read"):
        load("binarized_mnist", "valid", tmp_path)


def test_no_archive_is_unpickled(tmp_path, monkeypatch):
    small("binarized_mnist", monkeypatch)
    np.savez(tmp_path / "binarized_mnist.npz", train=np.array([{"anything": 1}], dtype=object))
    with pytest.raises(DataError, match="allow_pickle=False"):
        load("binarized_mnist", "train", tmp_path)


# ---- torchvision's files


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10"])
def test_torchvision_files(tmp_path, monkeypatch, name):
    small(name, monkeypatch)
    write_torchvision(name, tmp_path / "root", monkeypatch)
    images, labels = arrays(name, "train")
    for _ in range(2):  # decoded, and from the cache
        assert_is(load(name, "train", tmp_path / "root"), images[:-6], labels[:-6])
        assert_is(load(name, "valid", tmp_path / "root"), images[-6:], labels[-6:])
        assert_is(load(name, "train+valid", tmp_path / "root"), images, labels)
        assert_is(load(name, "test", tmp_path / "root"), *arrays(name, "test"))
    assert digest(name, "train+valid", tmp_path / "root") == sha256(images, labels)
    assert check(name, tmp_path / "root")["ok"]


@pytest.mark.parametrize("name", ["mnist", "svhn", "cifar10"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "corrupt", "another file"])
def test_damaged_torchvision_files_are_named(tmp_path, monkeypatch, name, damage):
    small(name, monkeypatch, digests=digests_of(name) if name == "mnist" else {})
    path = write_torchvision(name, tmp_path / "root", monkeypatch)
    content = path.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 255
    changed = {
        "truncated": content[: len(content) // 2],
        "empty": b"",
        "corrupt": bytes(flipped),
        "another file": b"a" * 99,
    }
    path.write_bytes(changed[damage])
    with pytest.raises(DataError, match=f"{path.name}.*genbook data fetch {name} --data-root"):
        load(name, "train", tmp_path / "root")
    assert not (tmp_path / "cache").exists()
    report = check(name, tmp_path / "root")
    assert not report["ok"] and path.name in report["problems"][0]


def test_a_missing_file_among_others_is_named(tmp_path, monkeypatch):
    small("mnist", monkeypatch)
    folder = write_torchvision("mnist", tmp_path, monkeypatch).parent
    (folder / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="train-labels-idx1-ubyte: missing"):
        load("mnist", "train", tmp_path)


def test_no_pickle_of_another_content_is_opened(tmp_path, monkeypatch):
    """torchvision unpickles CIFAR-10; a batch that isn't the publisher's must not get so far."""
    small("cifar10", monkeypatch)
    path = write_torchvision("cifar10", tmp_path / "root", monkeypatch)

    class Touch:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    path.write_bytes(pickle.dumps(Touch()))
    with pytest.raises(DataError, match="data_batch_3: its MD5 sum"):
        load("cifar10", "train", tmp_path / "root")
    assert not (tmp_path / "opened").exists()


def test_published_files_come_before_a_re_encoding(tmp_path, monkeypatch):
    small("cifar10", monkeypatch)
    write_parquet("cifar10", tmp_path / "cifar10", kind="JPEG")
    assert find("cifar10", "train", tmp_path).layout == "parquet"
    write_torchvision("cifar10", tmp_path, monkeypatch)
    assert find("cifar10", "train", tmp_path).layout == "torchvision"


# ---- parquet


@pytest.mark.parametrize(
    ("name", "folder", "kind", "shards", "column"),
    [
        ("svhn", "svhn", "WEBP", 1, "image"),
        ("svhn", "svhn/cropped_digits", "PNG", 3, "image"),
        ("cifar10", "cifar10/plain_text", "PNG", 1, "img"),
        ("mnist", "mnist/data", "PNG", 2, "image"),
    ],
)
def test_parquet(tmp_path, monkeypatch, name, folder, kind, shards, column):
    small(name, monkeypatch)
    monkeypatch.setattr(sys.modules[__name__], "encode", encode_lossless)
    write_parquet(name, tmp_path / folder, kind, shards, column)
    images, labels = arrays(name, "train")
    for _ in range(2):
        assert_is(load(name, "train", tmp_path), images[:-6], labels[:-6])
        assert_is(load(name, "test", tmp_path), *arrays(name, "test"))
    assert check(name, tmp_path)["splits"]["test"]["verdict"] == "sums unknown"
    assert provenance(name, tmp_path)["note"] == ""


def encode_lossless(image, kind="PNG"):
    buffer = io.BytesIO()
    pixels = image.transpose(1, 2, 0)
    options = {"lossless": True} if kind == "WEBP" else {}
    Image.fromarray(pixels if len(image) == 3 else pixels[..., 0]).save(buffer, kind, **options)
    return buffer.getvalue()


def test_provenance_tells_a_re_encoding_and_a_short_test_set(tmp_path, monkeypatch):
    small("cifar10", monkeypatch, published={"train": 20, "test": 12})
    write_parquet("cifar10", tmp_path / "cifar10", kind="JPEG")
    found = provenance("cifar10", tmp_path)
    assert found["layout"] == "parquet"
    assert found["splits"]["train"]["size"] == 14 and found["splits"]["test"]["size"] == 5
    assert "train: a JPEG re-encoding" in found["note"]
    assert "test: the first 5 of 12 published images" in found["note"]
    assert str(tmp_path) not in str(found)
    assert found["splits"]["valid"]["sha256"] == digest("cifar10", "valid", tmp_path)


def test_damaged_parquet_is_named(tmp_path, monkeypatch):
    small("svhn", monkeypatch)
    folder = tmp_path / "root" / "svhn"
    write_parquet("svhn", folder, shards=2)
    second = folder / "train-00001-of-00002.parquet"
    content = second.read_bytes()

    for damaged in (content[: len(content) // 2], b"", b"not parquet at all"):
        second.write_bytes(damaged)
        with pytest.raises(DataError, match="train-00001-of-00002.parquet: not a readable parquet"):
            load("svhn", "train", tmp_path / "root")
    second.unlink()
    with pytest.raises(DataError, match="train-00001-of-00002.parquet: missing"):
        load("svhn", "train", tmp_path / "root")
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize(
    ("bytes_of", "message"),
    [
        ([b"no image"] * 20, "row 0 holds no readable image"),
        (
            [encode(np.zeros((3, 32, 32), np.uint8))] * 19
            + [encode(np.zeros((3, 32, 31), np.uint8))],
            r"row 19 holds no readable image \(it is 32x31, not 32x32\)",
        ),
    ],
)
def test_images_that_are_none_are_named_by_row(tmp_path, monkeypatch, bytes_of, message):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn", parts=["train"], bytes_of=bytes_of)
    with pytest.raises(DataError, match=f"train-00000-of-00001.parquet: {message}"):
        load("svhn", "train", tmp_path)


def test_wrong_count_and_wrong_labels(tmp_path, monkeypatch):
    small("svhn", monkeypatch, published={"train": 21, "test": 5})
    write_parquet("svhn", tmp_path / "svhn")
    with pytest.raises(DataError, match="holds 20 images, not 21"):
        load("svhn", "train", tmp_path)
    small_labels = dataclasses.replace(
        DATASETS["svhn"], published={"train": 20, "test": 5}, classes=9
    )
    monkeypatch.setitem(DATASETS, "svhn", small_labels)
    with pytest.raises(DataError, match="labels are not 20 whole numbers from 0 to 8"):
        load("svhn", "train", tmp_path)


# ---- where files are looked for, and the decoded copies


def test_roots_are_searched_in_order(tmp_path, monkeypatch):
    small("binarized_mnist", monkeypatch)
    places = {
        "root": tmp_path / "root",
        "env": tmp_path / "env",
        "cache": tmp_path / "cache" / "genbook",
    }
    for seed, place in enumerate(places.values()):
        place.mkdir(parents=True)
        np.savez(place / "binarized_mnist.npz", train=arrays("binarized_mnist", "train", seed)[0])
    monkeypatch.setenv("GENBOOK_DATA", str(places["env"]))
    for seed, (place, root) in enumerate(
        {"root": places["root"], "env": None, "cache": None}.items()
    ):
        assert_is(load("binarized_mnist", "train", root), *arrays("binarized_mnist", "train", seed))
        (places[place] / "binarized_mnist.npz").unlink()
    with pytest.raises(DataError, match="genbook data fetch binarized_mnist"):
        load("binarized_mnist", "train", download=False)


@pytest.fixture
def counted(monkeypatch):
    """How often files were decoded and decoded copies opened, and how many bytes were hashed in the name of data."""
    import safetensors

    counts = {"decoded": 0, "opened": 0, "hashed": 0}
    sha, open_ = hashlib.sha256, safetensors.safe_open

    class Counting:
        def __init__(self, content=b""):
            self.sum = sha()
            self.update(content)

        def update(self, content):
            counts["hashed"] += 0 if isinstance(content, bytes) else memoryview(content).nbytes
            self.sum.update(content)

        def hexdigest(self):
            return self.sum.hexdigest()

    def open_counted(path, *args, **kwargs):
        counts["opened"] += Path(path).exists()
        return open_(path, *args, **kwargs)

    for layout, reader in reading._READERS.items():

        def read_counted(copy, reader=reader):
            counts["decoded"] += 1
            return reader(copy)

        monkeypatch.setitem(reading._READERS, layout, read_counted)
    monkeypatch.setattr(hashlib, "sha256", Counting)
    monkeypatch.setattr(safetensors, "safe_open", open_counted)
    return counts


def use(splits):
    """All that a run asks of its data, and more than once."""
    for _ in range(2):
        seen = [splits[split] for split in splits.dataset.sizes]
        assert len(seen[0].images) + len(seen[1].images) == len(seen[3].images)
        found = splits.provenance()
        for split in ("train", "valid", "test"):
            assert splits.digest(split) == found["splits"][split]["sha256"]
            assert getattr(splits, split).images.data_ptr() == splits[split].images.data_ptr()
    return found


def test_a_run_decodes_reads_and_hashes_its_data_once(tmp_path, monkeypatch, counted):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    pixels = 25 * (3 * 32 * 32 + 1)  # a byte for each label
    found = use(Splits("svhn", tmp_path))
    assert counted == {"decoded": 2, "opened": 0, "hashed": pixels}
    assert use(Splits("svhn", tmp_path)) == found  # from the decoded copies, which are checked
    assert counted == {"decoded": 2, "opened": 2, "hashed": 2 * pixels}
    assert {split: row["sha256"] for split, row in found["splits"].items()} == digests_of("svhn")


def test_a_run_compares_published_sums_without_hashing_again(tmp_path, monkeypatch, counted):
    small("mnist", monkeypatch, digests=digests_of("mnist"))
    write_torchvision("mnist", tmp_path, monkeypatch)
    use(Splits("mnist", tmp_path))
    assert counted == {"decoded": 2, "opened": 0, "hashed": 25 * (28 * 28 + 1)}


@pytest.mark.parametrize("name", ["toy_digits", "toy_house_numbers"])
def test_a_run_draws_and_hashes_a_toy_set_once(monkeypatch, counted, name):
    asked = []
    draw = loading.drawn
    monkeypatch.setattr(loading, "drawn", lambda *which: asked.append(which) or draw(*which))
    use(Splits(name))
    assert asked == [(name, split) for split in ("train", "valid", "test")]
    assert counted["hashed"] == 3000 * (math.prod(DATASETS[name].shape) + 1)


def test_splits_read_only_what_is_asked_for(tmp_path, monkeypatch, counted):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn", parts=["train"])
    splits = Splits("svhn", tmp_path, download=False)
    assert counted["decoded"] == 0 and (splits.name, splits.white) == ("svhn", 255)
    images, labels = arrays("svhn", "train")
    assert_is(splits.train, images[:-6], labels[:-6])
    assert_is(splits.valid, images[-6:], labels[-6:])
    assert_is(splits["train+valid"], images, labels)
    assert counted["decoded"] == 1
    with pytest.raises(DataError, match="svhn: no files of its test part"):
        _ = splits.test
    with pytest.raises(ValueError, match="split='dev' is no split of svhn; there are train, valid"):
        _ = splits["dev"]
    with pytest.raises(ValueError, match="name='shvn' is no data set"):
        Splits("shvn")


def test_decoded_copy_follows_its_source_and_survives_damage(tmp_path, monkeypatch):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    expected = load("svhn", "test", tmp_path)
    (copy,) = (tmp_path / "cache").rglob("*.safetensors")
    content = copy.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    for damaged in (content[: len(content) // 2], b"", flipped):
        copy.write_bytes(damaged)
        assert_is(load("svhn", "test", tmp_path), expected.images.numpy(), expected.labels.numpy())
        assert len(copy.read_bytes()) == len(content)  # made again

    source = tmp_path / "svhn" / "test-00000-of-00001.parquet"
    before = source.stat().st_mtime_ns
    monkeypatch.setattr(
        sys.modules[__name__], "arrays", lambda name, part, seed=0, draw=arrays: draw(name, part, 7)
    )
    write_parquet("svhn", tmp_path / "svhn")
    os.utime(source, ns=(before + 10**9, before + 10**9))
    assert_is(load("svhn", "test", tmp_path), *arrays("svhn", "test"))
    assert len(files_below(tmp_path / "cache")) == 1


def test_the_decoded_copy_is_what_is_read(tmp_path, monkeypatch):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    expected = load("svhn", "test", tmp_path)
    monkeypatch.setitem(
        reading._READERS, "parquet", lambda copy: pytest.fail("decoded a second time")
    )
    assert torch.equal(load("svhn", "test", tmp_path).images, expected.images)


@pytest.mark.parametrize("moment", ["save_file", "fsync", "replace"])
def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch, moment):
    import safetensors.numpy

    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    save = safetensors.numpy.save_file

    def interrupted(*args, **kwargs):
        if moment == "save_file":
            save(*args, **kwargs)
        raise KeyboardInterrupt

    owner = safetensors.numpy if moment == "save_file" else os
    with monkeypatch.context() as patch:
        patch.setattr(owner, moment, interrupted)
        with pytest.raises(KeyboardInterrupt):
            load("svhn", "test", tmp_path)
    assert files_below(tmp_path / "cache") == []
    assert_is(load("svhn", "test", tmp_path), *arrays("svhn", "test"))


def test_a_full_disk_costs_time_and_nothing_else(tmp_path, monkeypatch):
    import safetensors.numpy

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    monkeypatch.setattr(safetensors.numpy, "save_file", full)
    with pytest.warns(UserWarning, match="could not be kept.*No space left"):
        assert_is(load("svhn", "test", tmp_path), *arrays("svhn", "test"))
    assert files_below(tmp_path / "cache") == []


def test_nothing_is_written_beside_the_source(tmp_path, monkeypatch):
    small("svhn", monkeypatch)
    root = tmp_path / "root"
    write_parquet("svhn", root / "svhn")
    before = files_below(root)
    (root / "svhn").chmod(0o555)
    root.chmod(0o555)
    try:
        monkeypatch.setenv("GENBOOK_DATA", str(root))
        assert_is(load("svhn", "test"), *arrays("svhn", "test"))
        assert check("svhn")["ok"]
    finally:
        root.chmod(0o755)
        (root / "svhn").chmod(0o755)
    assert files_below(root) == before


def test_loads_at_the_same_time(tmp_path, monkeypatch):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    with ThreadPoolExecutor(8) as pool:
        splits = list(pool.map(lambda _: load("svhn", "test", tmp_path), range(16)))
    for split in splits:
        assert_is(split, *arrays("svhn", "test"))
    assert len(files_below(tmp_path / "cache")) == 1


def test_loaded_images_may_be_written_to(tmp_path, monkeypatch):
    small("svhn", monkeypatch)
    write_parquet("svhn", tmp_path / "svhn")
    for name in ("svhn", "toy_digits"):
        first = load(name, "test", tmp_path)
        kept = first.images.clone()
        first.images.zero_()
        assert torch.equal(load(name, "test", tmp_path).images, kept)


# ---- downloads


class Server:
    """Files on loopback, and a way of serving each: "well", "slow", "cut off", "stalled", "wrong" or a status code."""

    def __init__(self):
        self.files, self.ways, self.asked = {}, {}, []
        self.closing = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, with_body):
                name = self.path.lstrip("/")
                way = outer.ways.get(name, "well")
                outer.asked.append(name)
                if isinstance(way, int) or name not in outer.files:
                    self.send_error(way if isinstance(way, int) else 404)
                    return
                content = outer.files[name]
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if not with_body:
                    return
                if way == "wrong":
                    content = content[:-9] + bytes(9)
                half = len(content) // 2
                try:
                    if way == "slow":
                        for block in range(0, len(content), len(content) // 8 + 1):
                            self.wfile.write(content[block : block + len(content) // 8 + 1])
                            self.wfile.flush()
                            time.sleep(0.03)
                    elif way in ("cut off", "stalled"):
                        self.wfile.write(content[:half])
                        self.wfile.flush()
                        if way == "stalled":
                            outer.closing.wait(60)
                    else:
                        self.wfile.write(content)
                except OSError:
                    pass  # the client gave up

            def do_GET(self):
                self.answer(True)

            def do_HEAD(self):
                self.answer(False)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.base = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.closing.set()
        self.server.shutdown()
        self.server.server_close()


@pytest.fixture
def server(monkeypatch):
    for variable in (
        "http_proxy",
        "https_proxy",
        "HTTP_PROXY",
        "HTTPS_PROXY",
        "all_proxy",
        "ALL_PROXY",
    ):
        monkeypatch.delenv(variable, raising=False)
    running = Server()
    yield running
    running.close()


def publish(name, server, monkeypatch):
    """Let the server be a data set's publisher; returns a file it serves."""
    expected = {part: arrays(name, part) for part in DATASETS[name].published}
    small(name, monkeypatch, digests=digests_of(name) if DATASETS[name].digests else {})
    if name == "binarized_mnist":
        monkeypatch.setattr(fetching, "_BINARIZED", (server.base + "/{part}.amat",))
        server.files |= {f"{part}.amat": amat(pair[0]) for part, pair in expected.items()}
        return "valid.amat"
    server.files |= known_to_torchvision(monkeypatch, server.base)
    return {
        "mnist": "t10k-images-idx3-ubyte.gz",
        "svhn": "test_32x32.mat",
        "cifar10": "cifar-10-python.tar.gz",
    }[name]


REAL = ["binarized_mnist", "mnist", "svhn", "cifar10"]


@pytest.mark.parametrize("way", ["well", "slow"])
@pytest.mark.parametrize("name", REAL)
def test_download(tmp_path, monkeypatch, server, name, way):
    file = publish(name, server, monkeypatch)
    server.ways[file] = way
    split = load(name, "test")
    assert_is(split, *arrays(name, "test"))
    left = [
        path
        for path in files_below(tmp_path / "cache")
        if ".fetch-" in path or path.endswith((".gz", ".tmp"))
    ]
    assert left == []
    asked = len(server.asked)
    assert fetch(name) == tmp_path / "cache" / "genbook"  # already there
    load(name, "train")
    assert len(server.asked) == asked


@pytest.mark.parametrize("way", ["cut off", "stalled", "wrong", 404, 500])
@pytest.mark.parametrize("name", REAL)
def test_a_failed_download_leaves_nothing_and_can_be_repeated(
    tmp_path, monkeypatch, server, name, way
):
    file = publish(name, server, monkeypatch)
    monkeypatch.setattr(fetching, "_TIMEOUT", 0.3)
    server.ways[file] = way
    with pytest.raises(
        DataError, match=f"download from .* failed.*try again: genbook data fetch {name}"
    ):
        load(name, "test")
    assert files_below(tmp_path / "cache") == []
    server.ways[file] = "well"
    monkeypatch.setattr(fetching, "_TIMEOUT", 30)
    assert_is(load(name, "test"), *arrays(name, "test"))


@pytest.fixture
def second():
    """Another server."""
    running = Server()
    yield running
    running.close()


@pytest.mark.parametrize("way", [404, "wrong", "cut off"])
@pytest.mark.parametrize("kind", ["amat", "npz"])
def test_a_second_mirror_is_asked_where_the_first_has_not_the_set(
    tmp_path, monkeypatch, server, second, way, kind
):
    """The digests decide: also a first mirror that serves something else is passed over."""
    file = publish("binarized_mnist", server, monkeypatch)
    server.ways[file] = way
    if kind == "amat":
        second.files, mirror = dict(server.files), "/{part}.amat"
    else:
        buffer, mirror = io.BytesIO(), "/all.npz"
        parts = {f"{part}_data": arrays("binarized_mnist", part)[0] for part in SIZES}
        flat = {name: images.reshape(len(images), -1) for name, images in parts.items()}
        np.savez(buffer, **{name: images.astype(np.float32) for name, images in flat.items()})
        second.files["all.npz"] = buffer.getvalue()
    mirrors = (*fetching._BINARIZED, second.base + mirror)
    monkeypatch.setattr(fetching, "_BINARIZED", mirrors)
    for part in SIZES:
        assert_is(load("binarized_mnist", part), *arrays("binarized_mnist", part))
    assert file in server.asked and second.asked
    assert files_below(tmp_path / "cache") == ["genbook/binarized_mnist/binarized_mnist.npz"]


def test_what_was_wrong_at_each_mirror_is_said(tmp_path, monkeypatch, server, second):
    file = publish("binarized_mnist", server, monkeypatch)
    server.ways[file] = 404
    monkeypatch.setattr(
        fetching, "_BINARIZED", (*fetching._BINARIZED, second.base + "/{part}.amat", server.base)
    )
    with pytest.raises(DataError) as told:
        fetch("binarized_mnist", tmp_path / "root")
    for base in (server.base, second.base):
        assert f"{base}/{{part}}.amat: HTTP Error 404" in str(told.value)
    assert "add: --from FILE_OR_FOLDER" in str(told.value)
    assert files_below(tmp_path / "root") == []


@pytest.mark.parametrize(
    ("name", "how"),
    [
        *((name, how) for name in REAL for how in ("folder", "address of a folder")),
        *((name, how) for name in ("binarized_mnist", "cifar10") for how in ("file", "address")),
    ],
)
def test_a_set_is_fetched_from_where_the_reader_says(tmp_path, monkeypatch, server, name, how):
    publish(name, server, monkeypatch)
    files = dict(server.files)
    if name == "binarized_mnist":
        files = {f"binarized_mnist_{file}": content for file, content in files.items()}
    one = sorted(files)[0]
    server.files = {f"a folder/{file}".replace(" ", "%20"): files[file] for file in files}
    write(tmp_path / "a folder", files)
    known_to_torchvision(monkeypatch)  # which no longer knows an address that answers
    place = {
        "folder": tmp_path / "a folder",
        "file": tmp_path / "a folder" / one,
        "address of a folder": f"{server.base}/a%20folder/",
        "address": f"{server.base}/a%20folder/{one}",
    }[how]
    assert fetch(name, tmp_path / "root", str(place)) == tmp_path / "root"
    assert_is(load(name, "test", tmp_path / "root", download=False), *arrays(name, "test"))


def test_a_place_that_is_none_or_has_another_set_is_named(tmp_path, monkeypatch, server):
    publish("binarized_mnist", server, monkeypatch)
    with pytest.raises(ValueError, match="source must be an address, or a file or folder"):
        fetch("binarized_mnist", tmp_path / "root", str(tmp_path / "nowhere"))
    np.savez(tmp_path / "other.npz", train=np.zeros((20, 784)), valid=np.zeros((6, 784)))
    with pytest.raises(DataError, match="download from .*other.npz failed"):
        fetch("binarized_mnist", tmp_path / "root", str(tmp_path / "other.npz"))
    assert files_below(tmp_path / "root") == []


def test_offline_says_so(monkeypatch):
    with pytest.raises(
        DataError,
        match="Connection refused.*With a network at hand.*genbook data fetch binarized_mnist",
    ):
        load("binarized_mnist", "test")


@pytest.mark.parametrize("name", REAL)
def test_fetch_mends_what_load_complained_of(tmp_path, monkeypatch, server, name):
    publish(name, server, monkeypatch)
    root = tmp_path / "root"
    assert fetch(name, root) == root
    copy = find(name, "train", root)
    copy.files[0].write_bytes(copy.files[0].read_bytes()[:-100])
    with pytest.raises(DataError, match="genbook data fetch"):
        load(name, "train", root)
    fetch(name, root)
    assert_is(
        load(name, "train+valid" if DATASETS[name].held_out else "train", root),
        *arrays(name, "train"),
    )


def test_fetch_completes_a_short_test_set(tmp_path, monkeypatch, server):
    publish("svhn", server, monkeypatch)
    monkeypatch.setitem(SIZES, "test", 3)
    write_parquet("svhn", tmp_path / "svhn")
    monkeypatch.setitem(SIZES, "test", 5)
    assert len(load("svhn", "test", tmp_path).images) == 3
    fetch("svhn", tmp_path)
    assert len(load("svhn", "test", tmp_path).images) == 5


def test_fetch_into_a_place_that_cannot_be_written(tmp_path, monkeypatch, server):
    publish("mnist", server, monkeypatch)
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    with pytest.raises(DataError, match="cannot be written to.*genbook data fetch mnist"):
        fetch("mnist", tmp_path / "file")
    assert server.asked == []


def test_downloads_at_the_same_time(tmp_path, monkeypatch, server):
    publish("binarized_mnist", server, monkeypatch)
    with ThreadPoolExecutor(4) as pool:
        splits = list(pool.map(lambda _: load("binarized_mnist", "test"), range(4)))
    for split in splits:
        assert_is(split, *arrays("binarized_mnist", "test"))
    assert files_below(tmp_path / "cache") == ["genbook/binarized_mnist/binarized_mnist.npz"]


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")
def test_a_download_that_is_killed_leaves_nothing_to_be_found(tmp_path, monkeypatch, server):
    publish("binarized_mnist", server, monkeypatch)
    server.ways["test.amat"] = "stalled"
    program = (
        "import sys; from genbook import data; from genbook.data import fetching\n"
        "fetching._BINARIZED = (sys.argv[1],)\n"
        "data.DATASETS['binarized_mnist'] = eval('data.' + sys.argv[2])\n"
        "data.fetch('binarized_mnist')"
    )
    table = repr(DATASETS["binarized_mnist"])
    process = subprocess.Popen(
        [sys.executable, "-c", program, fetching._BINARIZED[0], table],
        cwd=Path(__file__).parent.parent,
    )
    try:
        while "test.amat" not in server.asked and process.poll() is None:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert "test.amat" in server.asked
    assert find("binarized_mnist", "train") is None
    server.ways.clear()
    assert_is(load("binarized_mnist", "train"), *arrays("binarized_mnist", "train"))


# ---- names, splits, and the toy sets


def test_unknown_names_and_splits():
    with pytest.raises(ValueError, match="name='minst'.*binarized_mnist, mnist"):
        load("minst")
    with pytest.raises(ValueError, match="split='dev'.*train, valid, test"):
        load("mnist", "dev")
    with pytest.raises(ValueError, match="part='valid' is no published part of mnist"):
        find("mnist", "valid")


def test_torchvision_imports_twice_and_before_torchmetrics():
    program = "import genbook.data as d; d.import_torchvision(); d.import_torchvision().datasets; import torchmetrics.image; print('well')"
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
    )
    assert done.stdout.strip() == "well", done.stderr


@pytest.mark.parametrize("draw", [data.toy_digits, data.toy_grey_digits, data.toy_house_numbers])
def test_toy_sets_depend_on_the_seed_and_not_on_the_size(draw):
    images, labels = draw(503, seed=3)
    again = draw(503, seed=3)
    assert torch.equal(images, again.images) and torch.equal(labels, again.labels)
    fewer = draw(7, seed=3)
    assert torch.equal(images[:7], fewer.images) and torch.equal(labels[:7], fewer.labels)
    assert not torch.equal(images, draw(503, seed=4).images)
    assert set(labels.tolist()) == set(range(10)) and labels.dtype == torch.int64
    for n, seed in ((0, 0), (-1, 0), (5, -1)):
        with pytest.raises(ValueError):
            draw(n, seed)


@pytest.mark.parametrize("name", ["toy_digits", "toy_house_numbers"])
def test_toy_splits(name):
    dataset = DATASETS[name]
    splits = {split: load(name, split) for split in dataset.sizes}
    for split, size in dataset.sizes.items():
        assert (
            splits[split].images.shape == (size, *dataset.shape)
            and splits[split].images.dtype == torch.uint8
        )
    assert torch.equal(splits["train+valid"].images[:2000], splits["train"].images)
    drawn = {
        image.tobytes()
        for split in ("train", "valid", "test")
        for image in splits[split].images.numpy()
    }
    assert len(drawn) == 3000  # no image twice, within a split or across
    assert {int(split.images.max()) for split in splits.values()} == {dataset.white}
    assert fetch(name) is None and check(name)["ok"]
    assert provenance(name)["splits"]["test"]["sha256"] == digest(name, "test")


def test_toy_digits_are_binary_and_like_mnist_in_size():
    images = data.toy_digits(1000).images
    assert set(images.unique().tolist()) == {0, 1}
    assert 0.10 < images.float().mean() < 0.15  # 0.131 in the binarised MNIST
    inked = data.toy_grey_digits(1000).images.amax((1, 3)) > 76
    assert 18.5 < inked.sum(1).float().mean() < 20.5  # rows a digit covers: 19.7 in MNIST


def test_a_linear_classifier_reads_the_toy_digits():
    """The labels are those of the images, and the task is neither trivial nor hopeless."""
    from sklearn.linear_model import LogisticRegression

    train, test = load("toy_digits", "train"), load("toy_digits", "test")
    model = LogisticRegression(max_iter=300, tol=0.01, C=0.03).fit(
        train.images.flatten(1).numpy(), train.labels.numpy()
    )
    accuracy = model.score(test.images.flatten(1).numpy(), test.labels.numpy())
    assert 0.8 < accuracy < 0.995


# ---- the real sets

real = pytest.mark.skipif(not REAL_DATA, reason="GENBOOK_DATA is not set")


@pytest.fixture
def real_data(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("GENBOOK_DATA", REAL_DATA)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "real-cache"))


HISTOGRAMS = {  # images of each class in the published training part
    "mnist": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "svhn": [4948, 13861, 10585, 8497, 7458, 6882, 5727, 5595, 5045, 4659],
    "cifar10": [5000] * 10,
}


@real
@pytest.mark.parametrize("name", ["binarized_mnist", "mnist"])
def test_real_sets_known_to_the_byte(real_data, name):
    if find(name, "train") is None:
        pytest.skip(f"no {name} under GENBOOK_DATA")
    report = check(name)
    assert report["ok"], report["problems"]
    assert {row["verdict"] for row in report["splits"].values()} == {"as published"}


@real
@pytest.mark.parametrize("name", REAL)
def test_real_sets(real_data, name):
    if find(name, "train") is None:
        pytest.skip(f"no {name} under GENBOOK_DATA")
    dataset = DATASETS[name]
    for split in ("train", "valid", "test"):
        images, labels = load(name, split, download=False)
        size = dataset.sizes[split]
        assert images.shape[1:] == dataset.shape and (
            len(images) == size or (split == "test" and len(images) <= size)
        )
        if name == "binarized_mnist":
            assert labels is None and set(images.unique().tolist()) == {0, 1}
        else:
            assert labels.shape == (len(images),) and set(labels.tolist()) == set(range(10))
    if name in HISTOGRAMS:
        labels = load(name, "train+valid", download=False).labels
        assert torch.bincount(labels).tolist() == HISTOGRAMS[name]
    if name == "cifar10" and find(name, "train").layout == "parquet":
        assert "JPEG re-encoding" in provenance(name)["note"]
