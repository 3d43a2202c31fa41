"""A reader's own images: every kind of picture, damaged and sound, in a folder, an archive or a table."""

import hashlib
import io
import os

import numpy as np
import pytest
from PIL import Image

from genbook.data import DataError, Splits, own_images
from genbook.data.folder import as_square, gather, part_of

SIDE = 8
GREY = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) * 4  # every pixel another level
COLOUR = np.stack([GREY, 255 - GREY, GREY // 2], axis=2)


def encoded(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def seen(content, channels, side=SIDE):
    """What a model sees of an encoded picture."""
    return as_square(Image.open(io.BytesIO(content)), channels, side)


def pictures(folder, n=60, seed=0, side=SIDE, kind="png"):
    """Pictures of noise in a folder; their pixels."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, side, side, 3), dtype=np.uint8)
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k}.{kind}")
    return images


def gathered(place, kind="images:3", side=SIDE, root=None):
    return gather(own_images(place, kind, side), root)


def all_of(found):
    """The images of all parts, as a set of bytes."""
    return {x.numpy().tobytes() for part in found.parts.values() for x in part.whole.images}


# ---- one picture


def test_grey_and_colour_become_what_the_model_has():
    grey, colour = (encoded(Image.fromarray(pixels), "PNG") for pixels in (GREY, COLOUR))
    assert np.array_equal(seen(grey, 1)[0], GREY)
    assert np.array_equal(seen(grey, 3), np.stack([GREY] * 3))
    assert np.array_equal(seen(colour, 3), COLOUR.transpose(2, 0, 1))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])
    assert np.abs(seen(colour, 1)[0] - luma).max() < 1


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_and_not_cut_off(kind):
    deep = Image.fromarray(GREY.astype(np.uint16) * 257)
    assert np.array_equal(seen(encoded(deep, kind), 1)[0], GREY)


def test_levels_that_are_no_sixteen_bits_are_refused():
    with pytest.raises(ValueError, match="levels from 0 to 2000000, not 16 bits"):
        as_square(Image.fromarray(np.array([[0, 2_000_000]] * 2, np.int32)), 1, 2)
    with pytest.raises(ValueError, match="real numbers"):
        as_square(Image.fromarray(np.zeros((4, 4), np.float32)), 1, 4)


def test_what_is_transparent_lies_on_white():
    alpha = np.full((SIDE, SIDE), 255, np.uint8)
    alpha[:2] = 0
    alpha[2] = 128
    rgba = encoded(Image.fromarray(np.dstack([COLOUR, alpha])), "PNG")
    found = seen(rgba, 3).transpose(1, 2, 0)
    assert (found[:2] == 255).all() and np.array_equal(found[3:], COLOUR[3:])
    half = COLOUR[2] * (128 / 255) + 255 * (127 / 255)
    assert np.abs(found[2] - half).max() <= 1
    la = encoded(Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(alpha)]), "PNG")
    assert (seen(la, 1)[0, :2] == 255).all() and np.array_equal(seen(la, 1)[0, 3:], GREY[3:])


def test_palettes_with_and_without_a_transparent_colour():
    indices = np.arange(SIDE * SIDE, dtype=np.uint8).reshape(SIDE, SIDE) % 3
    palette = Image.fromarray(indices).convert("P")
    palette.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    expected = np.eye(3, dtype=np.uint8)[indices] * 255
    assert np.array_equal(seen(encoded(palette, "PNG"), 3).transpose(1, 2, 0), expected)
    found = seen(encoded(palette, "PNG", transparency=1), 3).transpose(1, 2, 0)
    assert (found[indices == 1] == 255).all()
    assert np.array_equal(found[indices != 1], expected[indices != 1])
    assert np.array_equal(seen(encoded(palette, "GIF"), 3).transpose(1, 2, 0), expected)


def test_one_bit_and_four_inks():
    bits = Image.fromarray(GREY > 100)
    assert np.array_equal(seen(encoded(bits, "PNG"), 1)[0], 255 * (GREY > 100))
    inks = encoded(Image.new("CMYK", (SIDE, SIDE), (0, 255, 255, 0)), "JPEG")
    red = seen(inks, 3)
    assert (red[0] > 240).all() and (red[1:] < 15).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_camera_s_note_on_rotation_is_followed(orientation):
    """How the stored rows and columns must be turned is written down here as the standard has it."""
    stored = {
        1: COLOUR,
        2: COLOUR[:, ::-1],
        3: COLOUR[::-1, ::-1],
        4: COLOUR[::-1],
        5: COLOUR.transpose(1, 0, 2),
        6: COLOUR[::-1].transpose(1, 0, 2)[::-1, ::-1],
        7: COLOUR[::-1, ::-1].transpose(1, 0, 2),
        8: COLOUR[:, ::-1].transpose(1, 0, 2)[::-1, ::-1],
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    content = encoded(Image.fromarray(np.ascontiguousarray(stored)), "PNG", exif=exif)
    assert np.array_equal(seen(content, 3).transpose(1, 2, 0), COLOUR)


@pytest.mark.parametrize("size", [(24, 8), (8, 24)])
def test_the_square_in_the_middle_is_kept(size):
    wide = np.zeros((size[1], size[0]), np.uint8)
    top, left = (size[1] - 8) // 2, (size[0] - 8) // 2
    wide[top : top + 8, left : left + 8] = GREY
    assert np.array_equal(as_square(Image.fromarray(wide), 1, 8)[0], GREY)


def test_sizes_are_brought_to_the_side():
    large = Image.fromarray(np.kron(GREY, np.ones((4, 4), np.uint8)))
    assert as_square(large, 1, SIDE).shape == (1, SIDE, SIDE)
    assert np.abs(as_square(large, 1, SIDE)[0, 2:-2, 2:-2].astype(int) - GREY[2:-2, 2:-2]).max() < 6
    assert as_square(Image.fromarray(GREY), 3, 2 * SIDE).shape == (3, 16, 16)
    with pytest.raises(ValueError, match="it has 8 by 8 pixels, and 17 are wanted"):
        as_square(Image.fromarray(GREY), 3, 17)


# ---- a folder


def test_every_picture_is_there_once_and_copies_are_never_in_two_parts(tmp_path):
    images = pictures(tmp_path / "a")
    for k in range(0, 60, 3):  # as other files, of another format
        Image.fromarray(images[k]).save(tmp_path / "a" / f"copy-{k}.bmp")
    found = gathered(tmp_path / "a")
    assert sum(len(part.whole.images) for part in found.parts.values()) == 80
    parts = [{x.numpy().tobytes() for x in part.whole.images} for part in found.parts.values()]
    assert len(set.union(*parts)) == sum(map(len, parts)) == 60
    assert set.union(*parts) == {image.transpose(2, 0, 1).tobytes() for image in images}
    for split, part in found.parts.items():
        for x in part.whole.images:
            assert part_of(hashlib.sha256(x.numpy().tobytes()).hexdigest()) == split


def test_parts_do_not_depend_on_names_and_stay_when_pictures_are_added(tmp_path):
    pictures(tmp_path / "a")
    pictures(tmp_path / "b")
    for k, path in enumerate(sorted((tmp_path / "b").iterdir())):
        path.rename(path.with_name(f"other-{97 * k % 61}.png"))
    first, second = gathered(tmp_path / "a"), gathered(tmp_path / "b")
    assert first.provenance()["splits"] == second.provenance()["splits"]
    Image.fromarray(COLOUR).save(tmp_path / "b" / "more.png")
    third = gathered(tmp_path / "b")
    assert third.digest != first.digest
    for split, part in first.parts.items():
        assert {x.numpy().tobytes() for x in part.whole.images} <= {
            x.numpy().tobytes() for x in third.parts[split].whole.images
        }


def test_eight_in_ten_are_to_fit_on():
    sums = [hashlib.sha256(bytes([k % 256, k // 256])).hexdigest() for k in range(20_000)]
    shares = [sum(part_of(each) == part for each in sums) / 20_000 for part in ("train", "valid")]
    assert abs(shares[0] - 0.8) < 0.012 and abs(shares[1] - 0.1) < 0.009


def test_subfolders_are_labels(tmp_path):
    pictures(tmp_path / "a" / "dogs", seed=1)
    pictures(tmp_path / "a" / "cats" / "deeper", n=30, seed=2)
    found = gathered(tmp_path / "a")
    assert found.note == "labels cats, dogs"
    labels = np.concatenate([part.whole.labels for part in found.parts.values()])
    assert (labels == 0).sum() == 30 and (labels == 1).sum() == 60
    (tmp_path / "a" / "cats").rename(tmp_path / "a" / "3")
    (tmp_path / "a" / "dogs").rename(tmp_path / "a" / "10")
    numbers = gathered(tmp_path / "a")
    assert {int(k) for part in numbers.parts.values() for k in part.whole.labels} == {3, 10}
    assert gathered(tmp_path / "a" / "10").parts["train"].whole.labels is None


def test_hidden_and_other_files_are_no_pictures(tmp_path):
    pictures(tmp_path / "a")
    (tmp_path / "a" / "._0.png").write_bytes(b"of a Mac")
    (tmp_path / "a" / "notes.txt").write_text("nothing to see")
    (tmp_path / "a" / ".thumbs").mkdir()
    (tmp_path / "a" / ".thumbs" / "0.png").write_bytes(b"small")
    (tmp_path / "a" / "0.png").rename(tmp_path / "a" / "_MG_0.PNG")
    os.mkfifo(tmp_path / "a" / "pipe.png")
    assert len(all_of(gathered(tmp_path / "a"))) == 60


BROKEN = {
    "no picture": (b"<html>404</html>", "no picture"),
    "empty": (b"", "no picture"),
    "cut off": (encoded(Image.fromarray(COLOUR), "PNG")[:-30], "truncated|broken"),
    "tiny": (encoded(Image.new("RGB", (3, 90)), "PNG"), "3 by 90 pixels, and 8 are wanted"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_one_in_a_hundred_may_be_broken_and_is_named(tmp_path, capsys, what):
    content, reason = BROKEN[what]
    pictures(tmp_path / "a", n=99)
    (tmp_path / "a" / "bad.png").write_bytes(content)
    found = gathered(tmp_path / "a")
    assert len(all_of(found)) == 99 and found.note == "left out 1 of 100"
    told = capsys.readouterr().err
    assert len(told.splitlines()) == 1 and "left out 1 of 100 pictures: bad.png (" in told
    (tmp_path / "a" / "98.png").unlink()
    with pytest.raises(DataError, match=rf"1 of 99 pictures cannot .*bad.png \(.*({reason})"):
        gathered(tmp_path / "a")


def test_a_huge_picture_is_not_decoded(tmp_path, monkeypatch):
    """A PNG of 100 KB that would take 300 MB in memory."""
    pictures(tmp_path / "a", n=99)
    Image.new("1", (10_000, 10_000)).save(tmp_path / "a" / "bomb.png")
    loaded = []
    load = Image.Image.load
    monkeypatch.setattr(Image.Image, "load", lambda self: loaded.append(self.size) or load(self))
    assert gathered(tmp_path / "a").note == "left out 1 of 100"
    assert (10_000, 10_000) not in loaded


def test_a_folder_that_is_none_of_images_says_what_it_is(tmp_path):
    with pytest.raises(DataError, match="there is no such folder or file"):
        gathered(tmp_path / "nowhere")
    (tmp_path / "a").mkdir()
    with pytest.raises(DataError, match="no pictures of the formats PNG, JPEG"):
        gathered(tmp_path / "a")
    (tmp_path / "a" / "1.heic").write_bytes(b"x")
    with pytest.raises(DataError, match=r"but files \*.heic"):
        gathered(tmp_path / "a")
    pictures(tmp_path / "a", n=3)
    with pytest.raises(
        DataError, match="3 pictures make 3 different squares, too few .*some fifty"
    ):
        gathered(tmp_path / "a")
    pictures(tmp_path / "a" / "cats")
    with pytest.raises(DataError, match="0.png and 2 more lie beside subfolders"):
        gathered(tmp_path / "a")
    with pytest.raises(DataError, match="an .npz or a .parquet file"):
        gathered(tmp_path / "a" / "cats" / "0.png")
    pictures(tmp_path / "b" / "train")
    pictures(tmp_path / "b" / "test", seed=1)
    with pytest.raises(DataError, match="test, train are parts and no labels"):
        gathered(tmp_path / "b")


def test_bits_are_white_from_the_middle_on(tmp_path):
    images = pictures(tmp_path / "a")
    found = gathered(tmp_path / "a", "bits:1")
    luma = images @ np.array([0.299, 0.587, 0.114])
    expected = {(image > 127.5).astype(np.uint8).tobytes() for image in luma}
    assert len(all_of(found) & expected) > 55  # Pillow rounds
    assert all(part.whole.images.max() == 1 for part in found.parts.values())


def test_pictures_that_are_one_as_bits_are_too_few(tmp_path):
    (tmp_path / "a").mkdir()
    for k in range(60):
        Image.new("L", (SIDE, SIDE), 2 * k).save(tmp_path / "a" / f"{k}.png")
    assert len(all_of(gathered(tmp_path / "a"))) == 60
    with pytest.raises(DataError, match="60 pictures make 1 different bits, too few"):
        gathered(tmp_path / "a", "bits:1")


def test_a_folder_that_has_moved_is_found_under_the_root(tmp_path):
    pictures(tmp_path / "a" / "mine")
    name = own_images(tmp_path / "a" / "mine", "images:3", SIDE)
    digest = gather(name).digest
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(DataError, match="no such folder"):
        gather(name)
    assert gather(name, tmp_path / "b").digest == digest
    pictures(tmp_path / "a" / "mine", seed=1)  # where it was, there are others now
    assert gather(name, tmp_path / "b").digest != digest


# ---- an archive, and a table


def archived(tmp_path, **arrays):
    np.savez(tmp_path / "some.npz", **arrays)
    return gathered(tmp_path / "some.npz")


def test_an_archive_is_the_same_as_the_folder(tmp_path):
    images = pictures(tmp_path / "a")
    expected = gathered(tmp_path / "a").digest
    for changed in (
        images,
        images.transpose(0, 3, 1, 2),
        images / np.float32(255),
        images.astype(np.uint16) * 257,
        images.astype(np.int64),
    ):
        assert archived(tmp_path, images=changed).digest == expected
    assert archived(tmp_path, whatever=images).digest == expected
    grey = archived(tmp_path, images=images[..., 0])
    assert all_of(grey) == {np.stack([image[..., 0]] * 3).tobytes() for image in images}
    bits = archived(tmp_path, images=images[..., 0] > 99)
    assert {int(level) for part in bits.parts.values() for level in part.whole.images.unique()} == {
        0,
        255,
    }


def test_an_archive_has_labels_by_number_or_by_name(tmp_path):
    images = pictures(tmp_path / "a")
    numbers = archived(tmp_path, images=images, labels=np.arange(60) % 7)
    assert {int(k) for part in numbers.parts.values() for k in part.whole.labels} == set(range(7))
    names = archived(tmp_path, images=images, labels=np.array(["b", "a"] * 30))
    assert names.note == "labels a, b"
    of = {x.numpy().tobytes(): int(k) for part in names.parts.values() for x, k in zip(*part.whole)}
    assert [of[image.transpose(2, 0, 1).tobytes()] for image in images] == [1, 0] * 30


@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({"images": np.zeros((60, 8))}, r"must be \(n, h, w\)"),
        ({"images": np.zeros((60, 5, 8, 8))}, r"must be \(n, h, w\)"),
        ({"images": np.full((60, 8, 8), 1.5)}, r"must lie in \[0, 1\]"),
        ({"images": np.full((60, 8, 8), np.nan)}, r"must lie in \[0, 1\]"),
        ({"images": np.full((60, 8, 8), -1)}, "must be levels"),
        ({"images": np.full((60, 8, 8), 70_000)}, "8 or 16 bits, got 70000"),
        ({"x": np.zeros(3), "y": np.zeros(3)}, "no `images`, but x, y"),
        ({"images": np.zeros((60, 8, 8), np.uint8), "labels": np.zeros(59, int)}, "one for each"),
        ({"images": np.zeros((60, 8, 8), np.uint8), "labels": np.full(60, -1)}, "from 0 to 255"),
        ({"images": np.array([{}] * 60, object)}, "it has Python objects in it"),
    ],
)  # fmt: skip
def test_an_archive_of_something_else_says_so(tmp_path, arrays, told):
    with pytest.raises(DataError, match=rf"some.npz: .*{told}"):
        archived(tmp_path, **arrays)


def test_a_parquet_file_of_the_hub(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = pictures(tmp_path / "a")
    expected = gathered(tmp_path / "a").digest
    rows = [{"bytes": path.read_bytes(), "path": None} for path in (tmp_path / "a").iterdir()]
    pq.write_table(pa.table({"image": rows}), tmp_path / "some.parquet")
    assert gathered(tmp_path / "some.parquet").digest == expected
    (tmp_path / "shards").mkdir()
    for k in range(2):
        labels = [5] * 30 if k else [2] * 30
        table = pa.table({"img": rows[30 * k : 30 * k + 30], "label": labels})
        pq.write_table(table, tmp_path / "shards" / f"train-{k}.parquet")
    found = gathered(tmp_path / "shards")
    assert found.layout == "parquet" and len(all_of(found)) == len(images)
    assert {int(k) for part in found.parts.values() for k in part.whole.labels} == {2, 5}
    pq.write_table(pa.table({"pixels": [1]}), tmp_path / "other.parquet")
    with pytest.raises(DataError, match="no column `image`, but pixels"):
        gathered(tmp_path / "other.parquet")
    (tmp_path / "other.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match="not a parquet file of images"):
        gathered(tmp_path / "other.parquet")


# ---- as a data set


def test_splits_read_them_once(tmp_path, monkeypatch):
    from genbook.data import loading

    pictures(tmp_path / "a")
    asked, read = [], loading.gather
    monkeypatch.setattr(loading, "gather", lambda *given: asked.append(given) or read(*given))
    splits = Splits(own_images(tmp_path / "a", "images:3", SIDE))
    assert splits.white == 255 and splits.dataset.shape == (3, SIDE, SIDE)
    found = splits.provenance()["splits"]
    assert len(splits.train.images) == found["train"]["size"]
    assert len(splits["train+valid"].images) == found["train"]["size"] + found["valid"]["size"]
    assert splits.digest("test") == found["test"]["sha256"]
    assert found["all"]["size"] == 60 and len(asked) == 1


@pytest.mark.parametrize(
    "name", ["images:2x32:/a", "bits:1x3:/a", "images:3x32:", "images:3x4096:/a"]
)
def test_a_name_that_says_no_shape_is_refused(name):
    with pytest.raises(ValueError, match="is no data set|side must be at"):
        Splits(name)
