"""Records: what a malformed one is told, and that a write is whole or not at all."""

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from genbook import runs
from genbook.gan import minimax as gan
from genbook.runs import Run, audit, validate, validate_all
from genbook.viz import to_png

METRIC = {"value": -1.5, "se": 0.1, "n": 500, "split": "test", "unit": "nats", "tolerance": 0.01}
FIELDS = {"vae": {"name", "hidden", "epochs"}}


def make(root: Path, name="tiny") -> Path:
    path = root / name
    runs.save_weights(path / "model.safetensors", nn.Linear(3, 2))
    runs.write_metrics(
        path / "metrics.csv",
        [{"epoch": 0, "valid_elbo": -9.0}, {"epoch": 1, "train_loss": 2.5, "valid_elbo": -8.0}],
    )
    (path / "samples").mkdir()
    for epoch in (0, 10, 2):
        Image.new("L", (4, 4)).save(path / "samples" / f"epoch-{epoch}.png")
    runs.write_record(
        path, name=name, family="vae", recipe={"name": name, "hidden": 3, "epochs": 1}, data={"name": "toy_digits"}, seed=0,
        device="cpu", precision="fp32", seconds=1.25, epochs_done=1, metrics={"log_px": METRIC},
    )  # fmt: skip
    return path


@pytest.fixture
def path(tmp_path):
    return make(tmp_path)


def test_a_good_record(path, monkeypatch):
    assert validate(path, FIELDS) == [] and validate_all(path.parent, FIELDS) == {"tiny": []}
    monkeypatch.setenv("GENBOOK_RUNS", str(path.parent))
    run = Run.open("tiny")
    assert run.name == Run.open(path).name == "tiny" and run.recipe["family"] == "vae"
    assert run.figure("log_px") == -1.5
    assert math.isnan(run.metrics["train_loss"][0]) and run.metrics["valid_elbo"] == [-9.0, -8.0]
    assert run.curve("train_loss") == ([1.0], [2.5])
    assert [picture.name for picture in run.samples] == [
        "epoch-0.png",
        "epoch-2.png",
        "epoch-10.png",
    ]
    assert run.record["weights"]["parameters"] == 8 and run.record["weights"]["dtype"] == "F16"
    model = nn.Linear(3, 2)
    model.load_state_dict(runs.load_weights(run.weights))
    assert model.weight.dtype == torch.float32


def test_unknown_names_offer_the_nearest(path, monkeypatch):
    monkeypatch.setenv("GENBOOK_RUNS", str(path.parent))
    with pytest.raises(ValueError, match="did you mean 'tiny'"):
        Run.open("tinny")
    with pytest.raises(ValueError, match="did you mean 'log_px'"):
        Run(path).figure("log_p")
    with pytest.raises(ValueError, match="no column 'elbo'"):
        Run(path).curve("elbo")


def change(path, *keys, value=None):
    """Set an entry of run.json, or take it away."""
    record = json.loads((path / "run.json").read_text("utf-8"))
    inner = record
    for key in keys[:-1]:
        inner = inner[key]
    if value is None:
        del inner[keys[-1]]
    else:
        inner[keys[-1]] = value
    (path / "run.json").write_text(json.dumps(record), encoding="utf-8")


def line(path, text):
    with open(path / "metrics.csv", "a", encoding="utf-8") as file:
        file.write(text + "\n")


def cut(path):
    path.write_bytes(path.read_bytes()[:-30])


@pytest.mark.parametrize(
    "break_it, told",
    [
        (lambda p: (p / "run.json").unlink(), "run.json is missing"),
        (lambda p: (p / "run.json").write_text("{", encoding="utf-8"), "not JSON"),
        (lambda p: (p / "run.json").write_text("[]", encoding="utf-8"), "not a table"),
        (lambda p: change(p, "seed"), "lacks 'seed'"),
        (lambda p: change(p, "seed", value="x"), "seed is 'x'"),
        (lambda p: change(p, "name", value="other"), "name is 'other'"),
        (lambda p: change(p, "precision", value="fp8"), "precision is 'fp8'"),
        (lambda p: change(p, "seconds", value=math.inf), "Infinity is no number"),
        (lambda p: change(p, "seconds", value=-1), "seconds is -1"),
        (lambda p: change(p, "genbook", "commit"), "genbook lacks 'commit'"),
        (lambda p: change(p, "recipe", "family"), "recipe lacks 'family'"),
        (lambda p: change(p, "recipe", "family", value="gan"), "recipe.family is 'gan'"),
        (lambda p: change(p, "recipe", "hiden", value=3), "unknown field 'hiden'"),
        (lambda p: change(p, "recipe", "hidden"), "recipe lacks 'hidden'"),
        (lambda p: change(p, "metrics", value={}), "metrics is {}"),
        (lambda p: change(p, "metrics", "log_px", "value", value=math.nan), "NaN is no number"),
        (lambda p: change(p, "metrics", "log_px", "se", value=-1), "log_px.se is -1"),
        (lambda p: change(p, "metrics", "log_px", "n", value=0.5), "log_px.n is 0.5"),
        (lambda p: change(p, "metrics", "log_px", "unit"), "log_px lacks 'unit'"),
        (lambda p: change(p, "metrics", "log_px", "split", value=3), "log_px.split is 3"),
        (lambda p: change(p, "metrics", "log_px", "tolerance", value=-1), "log_px.tolerance is -1"),
        (lambda p: change(p, "metrics", "log_px", value=3), "metrics.log_px is 3"),
        (lambda p: (p / "metrics.csv").unlink(), "metrics.csv is missing"),
        (lambda p: (p / "metrics.csv").write_text("", encoding="utf-8"), "first column"),
        (lambda p: (p / "metrics.csv").write_text("epoch,x\n", encoding="utf-8"), "no rows"),
        (
            lambda p: (p / "metrics.csv").write_text("epoch,x,x\n1,2,3\n", encoding="utf-8"),
            "two columns of one name",
        ),
        (lambda p: line(p, "2,-1,-1,-1"), "line 4 has 4 fields"),
        (lambda p: line(p, "2,nan,-1"), "line 4, valid_elbo: 'nan'"),
        (lambda p: line(p, "2,what,-1"), "'what' is not a finite number"),
        (lambda p: line(p, "1,-1,-1"), "does not increase"),
        (lambda p: line(p, ",-1,-1"), "line 4, epoch: ''"),
        (
            lambda p: cut(p / "samples" / "epoch-2.png"),
            "samples/epoch-2.png is not a readable picture",
        ),
        (
            lambda p: Image.new("L", (2, 2)).save(p / "samples" / "x.png", "JPEG"),
            "samples/x.png is a JPEG",
        ),
        (lambda p: (p / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda p: cut(p / "model.safetensors"), "not a whole safetensors file"),
        (
            lambda p: runs.save_weights(p / "model.safetensors", nn.Linear(3, 2)),
            "weights.sha256 is",
        ),
        (
            lambda p: runs.save_weights(p / "model.safetensors", nn.Linear(3, 3)),
            "weights.parameters is 8",
        ),
        (lambda p: (p / "checkpoint.pt").write_bytes(b"x"), "checkpoint.pt does not belong"),
        (lambda p: (p / "big.npy").write_bytes(bytes(runs.FILE_LIMIT + 1)), "big.npy has 25.0 MB"),
    ],
)
def test_what_is_wrong_is_told(path, break_it, told):
    break_it(path)
    problems = validate(path, FIELDS)
    assert any(told in problem for problem in problems), problems
    assert validate_all(path.parent, FIELDS)["tiny"] == problems


def of_the_book(path):
    """A run that the list of the book's records has."""
    runs.write_atomic(path.parent / runs.INDEX, json.dumps([path.name]))
    return path


def test_size_is_asked_of_the_book_s_records_alone(path, monkeypatch):
    monkeypatch.setattr(audit, "TOTAL_LIMIT", 100)
    assert validate_all(path.parent) == {"tiny": []}
    assert "have 0.0 MB together" in validate_all(of_the_book(path).parent)[""][0]


def test_a_record_of_the_book_has_its_folder_s_name_and_no_other_run_need(path):
    renamed = path.rename(path.with_name("second-try"))
    assert validate(renamed, FIELDS) == []
    assert validate(of_the_book(renamed), FIELDS) == [
        "name is 'tiny' but the folder's is 'second-try'"
    ]


def test_a_record_of_the_book_that_is_lost_is_missed(path):
    shutil.rmtree(of_the_book(path))
    assert validate_all(path.parent) == {"": ["the book's record tiny is not there"]}


def test_no_run_takes_the_place_of_a_record_of_the_book(path):
    place = runs.Place(of_the_book(path))
    with pytest.raises(ValueError, match="one of the book's records and stays as it is"):
        place.begin(resume=False)
    link = path.parent / "link"
    link.symlink_to(path)
    with pytest.raises(ValueError, match="one of the book's records"):
        runs.Place(link).begin(resume=False)
    assert validate(path, FIELDS) == [] and os.listdir(path.parent).count("tiny.unfinished") == 0


@pytest.mark.parametrize("content", ["{", "{}", "[1]", "3", "\xff"])
def test_a_list_of_records_that_is_none_is_named(path, content):
    (path.parent / runs.INDEX).write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match=r"index\.json is no list of names"):
        runs.book_names(path.parent)


def test_a_folder_without_records(tmp_path):
    assert (
        validate_all(tmp_path) == {}
        and validate_all(tmp_path / "none") == {}
        and runs.all_runs(tmp_path / "none") == []
    )


def test_runs_root(tmp_path, monkeypatch):
    monkeypatch.delenv("GENBOOK_RUNS", raising=False)
    make(tmp_path / "runs")
    inner = tmp_path / "a" / "runs" / "Nov27_laptop"  # as TensorBoard makes them
    inner.mkdir(parents=True)
    (inner / "events.out.tfevents.1").write_bytes(b"x")
    monkeypatch.chdir(inner.parent.parent)
    assert runs.runs_root() == tmp_path / "runs"
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "elsewhere"))
    assert runs.runs_root() == tmp_path / "elsewhere"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("GENBOOK_RUNS", "~/mine")
    assert runs.runs_root() == tmp_path / "mine"


def test_the_book_s_records_are_found_beside_a_user_s_own(tmp_path, monkeypatch, root):
    """By name, by all that reads records; those of the user come first."""
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path))
    assert Run.open("gan-mnist").path == root / "runs" / "gan-mnist"
    own = make(tmp_path, "gan-mnist")
    assert Run.open("gan-mnist").path == own and runs.book_folder() == root / "runs"
    assert {run.path.parent for run in runs.book_runs()} == {root / "runs"}
    with pytest.raises(ValueError, match="did you mean 'vae-bmnist'"):
        Run.open("vae-bmnit")


def test_where_the_book_s_records_lie_is_said_where_they_are_not_at_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path))
    monkeypatch.setattr("genbook.runs.places.checkout", lambda: tmp_path / "site-packages")
    with pytest.raises(ValueError, match=r"not at hand.*repository.*\$GENBOOK_RUNS"):
        Run.open("vae-bmnist")


@pytest.mark.parametrize(
    "metric", [METRIC | {"value": math.nan}, {"value": 1.0}, METRIC | {"se": math.inf}]
)
def test_a_malformed_metric_is_not_written(path, metric):
    before = (path / "run.json").read_text("utf-8")
    with pytest.raises(ValueError, match="log_px"):
        runs.write_record(
            path, name="tiny", family="vae", recipe={}, data={}, seed=0, device="cpu", precision="fp32", seconds=1.0,
            epochs_done=1, metrics={"log_px": metric},
        )  # fmt: skip
    assert (path / "run.json").read_text("utf-8") == before


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    runs.write_atomic(tmp_path / "a.txt", "old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        runs.write_atomic(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text("utf-8") == "old" and os.listdir(tmp_path) == ["a.txt"]


def test_temporary_files_are_swept_once_their_process_is_gone(tmp_path):
    path = tmp_path / "a.txt"
    gone = subprocess.Popen(["true"])
    gone.wait()
    sleeper = subprocess.Popen(["sleep", "60"])
    try:
        left, living, other = (
            tmp_path / f".{name}.{number}.140000.tmp"
            for name, number in (("a.txt", gone.pid), ("a.txt", sleeper.pid), ("b.txt", gone.pid))
        )
        foreign = tmp_path / ".a.txt.swp.tmp"
        for each in (left, living, other, foreign):
            each.write_text("half", encoding="utf-8")
        runs.write_atomic(path, "new")
        assert not left.exists() and living.exists() and other.exists()
        runs.sweep(tmp_path)
        assert not other.exists() and living.exists() and foreign.exists()
        os.utime(living, (0, 0))  # by one that had the number before
        runs.sweep(tmp_path)
        assert not living.exists()
    finally:
        sleeper.kill()
        sleeper.wait()


def test_half_precision_refuses_what_it_cannot_hold(tmp_path):
    with pytest.raises(ValueError, match="'big' do not fit"):
        runs.save_weights(tmp_path / "w.safetensors", {"big": torch.tensor([1e6])})
    runs.save_weights(
        tmp_path / "w.safetensors",
        {"big": torch.tensor([1e6]), "count": torch.tensor(3)},
        dtype=None,
    )
    assert runs.load_weights(tmp_path / "w.safetensors") == {
        "big": torch.tensor([1e6]),
        "count": torch.tensor(3),
    }


def test_unreadable_weights_are_named(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"no")
    with pytest.raises(ValueError, match="w.safetensors"):
        runs.load_weights(tmp_path / "w.safetensors")


@pytest.mark.parametrize("channels", [1, 3])
def test_a_grid_comes_apart_as_it_was_put_together(tmp_path, channels):
    images = torch.randint(256, (8, channels, 20, 20), dtype=torch.uint8)
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "some.png").write_bytes(to_png(images, ncols=4))
    assert torch.equal(runs.Run(tmp_path).tiles("some", side=20), images)


def test_a_recipe_comes_back_as_its_dataclass(tmp_path):
    recipe = gan.RECIPES["gan-mnist"]
    fields = json.loads(json.dumps({"family": "gan", **dataclasses.asdict(recipe)}))
    run = runs.Run(tmp_path)
    run.record = {"recipe": fields}
    assert run.recipe_as(gan.GANRecipe) == recipe


GIVEN = {"n": 10, "split": "test", "unit": "nats", "tolerance": 0.1}


@pytest.mark.parametrize(
    "bad", [{"n": 0}, {"n": 2.5}, {"tolerance": -1.0}, {"se": -0.1}, {"split": ""}, {"unit": ""}]
)
def test_metric_refuses(bad):
    assert runs.metric(1.5, **GIVEN) == {"value": 1.5, "se": None, **GIVEN}
    with pytest.raises(ValueError, match=next(iter(bad))):
        runs.metric(1.5, **GIVEN | bad)
    with pytest.raises(ValueError, match="value"):
        runs.metric(float("nan"), **GIVEN)


def test_mean_metric_is_the_mean_and_its_error():
    values = torch.tensor([1.0, 2.0, 6.0])
    found = runs.mean_metric(values, split="test", unit="nats", tolerance=0.1, note="three")
    assert (found["value"], found["n"], found["note"]) == (3, 3, "three")
    assert found["se"] == pytest.approx((7 / 3) ** 0.5)  # a variance of 7, over three
    for bad in (values[:1], values[None]):
        with pytest.raises(ValueError, match="vector of at least two"):
            runs.mean_metric(bad, split="test", unit="nats", tolerance=0.1)


def test_a_block_that_writes_nothing_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(FileNotFoundError), runs.replacing(path):
        pass
    assert path.read_text("utf-8") == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_told_without_an_error(root):
    run = Run(root / "runs" / "gan-mnist")
    assert run.record["metrics"]["sample_entropy"]["se"] is None
    assert run.told("sample_entropy", 3) == f"{run.figure('sample_entropy'):.3f}"
    with pytest.raises(ValueError, match="sample_entropy"):
        run.told("sample_entropi")


# What is made takes its place whole -----------------------------------------------------------------------------------


def test_two_runs_are_not_made_in_one_place(tmp_path):
    code = (
        "import sys; from genbook.runs import Place; place = Place(sys.argv[1])\n"
        "with place.taken():\n    place.begin(True); print('begun', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "run")]
    first = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert first.stdout.readline() == "begun\n"
    place = runs.Place(tmp_path / "run")
    with pytest.raises(ValueError, match="is being made by another process.*--out"):
        place.taken().__enter__()
    first.kill()
    first.wait()
    with place.taken():  # the system let go of the lock
        place.begin(resume=True)
    assert os.listdir(tmp_path) == ["run.unfinished"]


def test_a_scratch_folder_without_a_checkpoint_is_begun_anew(tmp_path):
    place = runs.Place(tmp_path / "run")
    runs.write_atomic(place.scratch / "samples" / "epoch-000.png", "of another recipe")
    place.begin(resume=True)
    assert os.listdir(place.scratch) == []
    runs.write_atomic(place.scratch / "checkpoint.pt", "x")
    place.begin(resume=True)
    assert os.listdir(place.scratch) == ["checkpoint.pt"]
    place.begin(resume=False)
    assert os.listdir(place.scratch) == []


def test_nothing_of_somebody_elses_is_replaced(path):
    (path / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match=r"holds 'notes.txt', which is no part of a record"):
        runs.Place(path).begin(resume=False)
    (path / "notes.txt").unlink()
    runs.Place(path).begin(resume=False)
    (path.parent / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(ValueError, match="is no folder"):
        runs.Place(path.parent / "file").begin(resume=True)
    (path.parent / "link").symlink_to(path)
    assert runs.Place(path.parent / "link").folder == path.resolve()


# Each record alone ----------------------------------------------------------------------------------------------------


def odd_values():
    return [None, True, -1, 1.5, 10**30, "", "x", "../x", [], {}, [1], {"a": 1}, 1e300]


def places(value, at=()):
    if isinstance(value, dict):
        for key, inner in value.items():
            yield (*at, key)
            yield from places(inner, (*at, key))


FREE = {"note", "notes", "source", "layout", "cores", "threads", "dtype", "version", "libraries"}


def test_no_odd_value_passes_as_whole(path):
    """Every field of a record in turn is each of the values that somebody might put there."""
    whole = json.loads((path / "run.json").read_text("utf-8"))
    passed = set()
    for at in places(whole):
        for value in odd_values():
            record = json.loads(json.dumps(whole))
            inner = record
            for key in at[:-1]:
                inner = inner[key]
            inner[at[-1]] = value
            (path / "run.json").write_text(json.dumps(record), encoding="utf-8")
            if not validate(path, FIELDS):
                passed.add(at[-1])
                assert runs.Run(path).record == record
            else:
                assert all("\n" not in problem for problem in validate(path, FIELDS))
    assert passed <= FREE | {"seconds", "epochs_done", "hidden", "epochs", "value", "se", "n",
                             "split", "unit", "commit", "dirty", "name", "python", "torch",
                             "torchvision", "accelerate", "numpy", "splits", "tolerance"}, passed  # fmt: skip
    assert {"seed", "files", "sha256", "file", "precision", "started", "metrics"}.isdisjoint(passed)


@pytest.mark.parametrize("kind", ["link", "pipe", "folder", "nothing", "bit", "other"])
@pytest.mark.parametrize("name", ["model.safetensors", "metrics.csv", "samples/epoch-2.png"])
def test_a_file_of_a_record_is_the_one_that_was_recorded(path, name, kind):
    file = path / name
    content = file.read_bytes()
    file.unlink()
    if kind == "link":
        (path.parent / "same").write_bytes(content)
        file.symlink_to(path.parent / "same")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "bit":
        file.write_bytes(content[:40] + bytes([content[40] ^ 1]) + content[41:])
    elif kind == "other":
        file.write_bytes(b"other")
    with pytest.raises(ValueError, match=file.name):
        runs.Run(path).file(name)
    assert any(file.name in problem for problem in validate(path, FIELDS))
    if name == "model.safetensors":
        with pytest.raises(ValueError, match=file.name):
            runs.load_weights(file)


@pytest.mark.parametrize("name", ["/etc/hostname", "../model.safetensors", "samples", "", 3])
def test_weights_are_named_plainly(path, name):
    change(path, "weights", "file", value=name)
    with pytest.raises(ValueError, match="weights.file"):
        assert runs.Run(path).weights
    assert any("weights.file" in problem for problem in validate(path, FIELDS))


def test_the_schema_is_published():
    published = Path(__file__).parent.parent / "_static" / "run.schema.json"
    assert json.loads(published.read_text("utf-8")) == runs.schema.schema(), "make export"
