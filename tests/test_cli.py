"""The command line: what it prints, where it writes, how it ends."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from genbook import cli, families, recipes, runs

COMMAND = [sys.executable, "-m", "genbook.cli"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder of its own for the runs, and no data but the toy sets."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("GENBOOK_DATA", raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # else a command looks how busy the machine is
    return tmp_path


@pytest.fixture
def genbook(place, capsys):
    """Run a command in this process: its exit status, standard output and standard error."""

    def run(*arguments):
        status = cli.main(list(arguments))
        return status, *capsys.readouterr()

    return run


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder of runs with one finished rehearsal."""
    root = tmp_path_factory.mktemp("finished")
    environment = pytest.MonkeyPatch()
    environment.setenv("GENBOOK_RUNS", str(root))
    environment.setenv("OMP_NUM_THREADS", "1")
    assert cli.main(["train", "vae-bmnist", "--smoke", "--set", "epochs=1"]) == 0
    environment.undo()
    return root


@pytest.fixture
def recorded(place, finished, monkeypatch):
    """The name of a finished run that a test may damage."""
    subprocess.run(["cp", "-r", finished, place / "runs"], check=True)
    (name,) = os.listdir(place / "runs")
    assert name == "vae-bmnist+smoke+epochs=1"
    return name


# Without torch


def test_help_needs_no_torch():
    code = "import sys; from genbook.cli import main; main(['--help']); print(*sys.modules)"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=300
    ).stdout
    for command in ("recipes", "train", "evaluate", "sample", "records", "equations", "data"):
        assert f"\n  {command} " in out
    assert "torch" not in out.splitlines()[-1].split()


def test_version():
    found = subprocess.run([*COMMAND, "--version"], capture_output=True, text=True, timeout=300)
    assert found.returncode == 0 and found.stdout.startswith("genbook 0.")


@pytest.mark.parametrize(
    "command",
    [
        "train",
        "evaluate",
        "sample",
        "interpolate",
        "quality",
        "records",
        "equations",
        "recipes",
        "data list",
        "data fetch",
        "data check",
    ],
)
def test_each_option_is_explained(genbook, command):
    status, out, err = genbook(*command.split(), "--help")
    assert (status, err) == (0, "")
    options = out[out.index("Options:") :].splitlines()[1:]
    for line, after in zip(options, [*options[1:], ""]):
        if line.startswith(("  --", "  -n")):
            assert len(line.split("  ")) > 2 or after.startswith("      "), (
                f"{line!r} is not explained"
            )
    if command in ("train", "evaluate"):
        assert f"  genbook {command} vae-bmnist\n" in out


# Mistakes that the user can mend: one line on standard error, nothing on standard output, exit status 2


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["train", "vae-bminst"], "did you mean 'vae-bmnist'"),
        (["recipes", "vae-mlp-z3"], "did you mean 'vae-mlp-z"),
        (["train", "vae-bmnist", "--set", "latnt=20"], "did you mean 'latent'"),
        (["train", "vae-bmnist", "--set", "name=other"], "no field of vae-bmnist is called 'name'"),
        (
            ["train", "vae-bmnist", "--set", "epochs=many"],
            "epochs must be a whole number, got 'many'",
        ),
        (
            ["train", "vae-bmnist", "--set", "epochs=1.5"],
            "epochs must be a whole number, got '1.5'",
        ),
        (["train", "vae-bmnist", "--set", "lr=fast"], "lr must be a number, got 'fast'"),
        (
            ["train", "vae-bmnist", "--set", "hidden=300,x"],
            "hidden must be a whole number, got",
        ),
        (["train", "vae-bmnist", "--set", "epochs"], "--set takes field=value; got 'epochs'"),
        (["train", "vae-bmnist", "--precision", "bf61"], "did you mean 'bf16'"),
        (["train", "vae-bmnist", "--device", "cdua"], "did you mean 'cuda'"),
        (["train", "vae-bmnist", "--smoke", "--set", "optimizer=adaam"], "did you mean 'adam'"),
        (["train", "vae-bmnist", "--smoke", "--set", "data=toy_digit"], "toy_digits"),
        (["train"], "Missing argument"),
        (["train", "vae-bmnist", "--smok"], "--smoke"),
        (["trian"], "Did you mean 'train'"),
        (["evaluate"], "either the name of a run or --all"),
        (["evaluate", "x", "--all"], "either the name of a run or --all"),
        (["evaluate", "nothing"], "no run 'nothing'"),
        (["sample", "nothing"], "no run 'nothing'"),
        (["sample", "nothing", "-n", "0"], "-n"),
        (["data", "check", "mist"], "did you mean 'mnist'"),
        (["data", "fetch", "cifar"], "did you mean 'cifar10'"),
        (["equations", "--nbs", "nowhere"], "no notebooks in nowhere"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(genbook, arguments, told):
    status, out, err = genbook(*arguments)
    assert (status, out) == (2, "")
    assert told in err
    assert len(err.splitlines()) == 1 and err.startswith("error: ")


def test_a_fault_of_the_package_keeps_its_traceback(genbook, monkeypatch):
    monkeypatch.setattr(families, "all_recipes", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.main(["recipes"])


def test_recipes(genbook, place):
    status, out, _ = genbook("recipes", "--json")
    rows = json.loads(out)
    assert status == 0
    assert {row["recipe"] for row in rows} >= {
        "vae-bmnist",
        "vae-bmnist-best",
        "iwae-bmnist",
        "vae-mlp-z2",
    }
    vae = next(row for row in rows if row["recipe"] == "vae-bmnist")
    assert vae["recorded"] == "yes"
    assert vae["minutes"] == round(runs.Run.open("vae-bmnist").record["seconds"] / 60, 1)
    status, out, _ = genbook("recipes")
    header, *lines = out.splitlines()
    assert header.split("\t") == list(rows[0]) and len(lines) == len(rows)
    assert "\x1b" not in out


def test_fields_of_a_recipe_are_what_set_takes(genbook):
    _, out, _ = genbook("recipes", "vae-bmnist-best")
    _, recipe = cli.find_recipe("vae-bmnist-best")
    settings = [
        "=".join(line.split("\t")[:2])
        for line in out.splitlines()[1:]
        if not line.startswith("name")
    ]
    assert recipes.override(recipe, settings) == recipe


def test_tables_on_a_terminal(finished):
    """`script` gives the command a terminal."""
    found = subprocess.run(
        ["script", "-qec", f"{sys.executable} -m genbook.cli records", os.devnull],
        capture_output=True, text=True, timeout=300, env=os.environ | {"GENBOOK_RUNS": str(finished), "TERM": "xterm-256color", "COLUMNS": "120"},
    )  # fmt: skip
    assert found.returncode == 0
    assert "─" in found.stdout and "\t" not in found.stdout


def test_a_broken_pipe_is_quiet():
    found = subprocess.run(
        f"{sys.executable} -m genbook.cli recipes | head -n 1",
        shell=True,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert found.stdout.startswith("recipe\t") and "Traceback" not in found.stderr


# Training


def test_a_changed_run_never_takes_a_recorded_one_s_place(genbook, place):
    status, out, _ = genbook(
        "train",
        "vae-bmnist",
        "--smoke",
        "--set",
        "epochs=1",
        "--set",
        "latent=100",
        "--set",
        "hidden=20,20",
        "--precision",
        "bf16",
    )
    assert status == 0
    (name,) = os.listdir(place / "runs")
    assert name == "vae-bmnist+smoke+epochs=1+hidden=20,20+precision=bf16"
    assert out.splitlines()[-1].endswith(name)
    record = json.loads((place / "runs" / name / "run.json").read_text("utf-8"))
    assert (
        record["name"] == name
        and record["precision"] == "bf16"
        and record["recipe"]["hidden"] == [20, 20]
    )
    assert not (place / "runs" / name / "checkpoint.pt").exists()


@pytest.mark.parametrize("value", ["../../elsewhere", "a/b", "a b", "x" * 300])
def test_names_of_folders_are_tame(value):
    _, recipe = cli.find_recipe("vae-bmnist")
    changed = recipes.override(recipe, [f"start={value}"])
    assert changed.start == value
    assert (
        "/" not in changed.name
        and " " not in changed.name
        and len(changed.name) <= 120
        and changed.name != recipe.name
    )


def test_a_finished_run_is_left_alone(genbook, recorded, place):
    arguments = ("train", "vae-bmnist", "--smoke", "--set", "epochs=1")
    before = (place / "runs" / recorded / "model.safetensors").stat().st_mtime_ns
    status, out, err = genbook(*arguments)
    assert status == 0 and "finished" in out and err == ""
    assert (place / "runs" / recorded / "model.safetensors").stat().st_mtime_ns == before

    path = place / "runs" / recorded / "run.json"
    record = json.loads(path.read_text("utf-8"))
    record["recipe"]["lr"] = 0.5
    path.write_text(json.dumps(record), encoding="utf-8")
    status, out, err = genbook(*arguments)
    assert status == 0 and "lr was 0.5, is 0.0003" in err


@pytest.fixture
def book(genbook, recorded, place, monkeypatch):
    """A folder of runs in which the finished one is a record of the book; what a name's recipe is, is its rehearsal."""
    runs.write_atomic(place / "runs" / runs.INDEX, json.dumps([recorded]))
    return place / "runs" / recorded


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("anew", [[], ["--no-resume"]])
def test_training_again_never_touches_a_record_of_the_book(genbook, book, anew):
    before = contents(book)
    arguments = ("train", "vae-bmnist", "--smoke", "--set", "epochs=1")
    status, out, err = genbook(*arguments, *anew)
    assert status == 0 and f"this run goes to {book}+2" in err and f"recorded in {book}+2" in out
    status, out, _ = genbook(*arguments)
    assert status == 0 and f"{book}+2 holds this run, finished" in out
    assert contents(book) == before
    status, out, err = genbook("records", "--json")
    assert status == 0 and [row["state"] for row in json.loads(out)] == ["whole", "whole"]


def test_a_record_of_the_book_is_no_place_for_a_run(genbook, book, place):
    before = contents(book)
    arguments = ("train", "vae-bmnist", "--smoke", "--set", "epochs=1", "--no-resume")
    for out in (book, os.path.relpath(book), book / "samples" / ".."):
        status, _, err = genbook(*arguments, "--out", str(out))
        assert status == 2 and "is one of the book's records and stays as it is" in err
    status, _, err = genbook(*arguments[:2], "iwae-bmnist", *arguments[2:], "--out", "runs")
    assert status == 2 and "is one of the book's records" in err
    assert contents(book) == before


def test_other_runs_are_no_failure_of_the_book(genbook, book, place):
    """A broken one, one that is no run at all, and one whose folder `--out` named."""
    arguments = ("train", "vae-bmnist", "--smoke", "--set", "epochs=1")
    assert genbook(*arguments, "--out", "runs/second-try")[0] == 0
    (place / "runs" / "Nov27_laptop").mkdir()
    (place / "runs" / "Nov27_laptop" / "events.out.tfevents.1").write_bytes(b"x")
    (place / "runs" / "mine").mkdir()
    (place / "runs" / "mine" / "run.json").write_text("{", encoding="utf-8")
    status, out, _ = genbook("records", "--json")
    assert status == 0
    assert {row["run"]: row["state"] for row in json.loads(out)} == {
        book.name: "whole",
        "second-try": "whole",
        "mine": "malformed",
        "Nov27_laptop": "incomplete",
    }
    (book / "metrics.csv").unlink()
    status, _, err = genbook("records")
    assert status == 1 and "metrics.csv is missing" in err


def test_out_must_not_hold_another_run(genbook, recorded, place):
    status, _, err = genbook(
        "train", "vae-bmnist-mc", "--smoke", "--no-resume", "--out", str(place / "runs" / recorded)
    )
    assert status == 2 and f"holds the record of {recorded}" in err


def test_interrupted_training_says_how_to_go_on_and_does(place):
    """Ctrl-C: exit status 130, a checkpoint, the command to go on; which ends with the weights of an undisturbed run."""
    arguments = ["train", "vae-bmnist", "--smoke", "--set", "epochs=12", "--set", "hidden=50,50"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    folder = place / "runs" / "vae-bmnist+smoke+epochs=12+hidden=50,50"
    scratch = folder.with_name(f"{folder.name}.unfinished")
    process = subprocess.Popen(
        [*COMMAND, *arguments, "--no-resume"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.monotonic() + 300
    while not (scratch / "checkpoint.pt").exists():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _out, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "stopped after step" in err and "Traceback" not in err
    hint = err.strip().splitlines()[-1]
    assert hint == f"to go on: genbook {' '.join(arguments)}"
    assert (scratch / "checkpoint.pt").exists() and str(scratch) in err and not folder.exists()

    unfinished = subprocess.run(
        [*COMMAND, "records", "--json"], capture_output=True, text=True, timeout=300
    )
    assert unfinished.returncode == 0 and json.loads(unfinished.stdout)[0]["state"] == "unfinished"
    assert json.loads(unfinished.stdout)[0]["folder"] == str(scratch)

    again = subprocess.run(
        [*COMMAND, *arguments], capture_output=True, text=True, timeout=300, env=environment
    )
    assert again.returncode == 0, again.stderr
    assert "epoch 1/12" not in again.stderr and "epoch 12/12" in again.stderr
    undisturbed = subprocess.run(
        [*COMMAND, *arguments, "--out", "other"],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment,
    )
    assert undisturbed.returncode == 0
    assert (folder / "model.safetensors").read_bytes() == (
        place / "other" / "model.safetensors"
    ).read_bytes()


@pytest.mark.parametrize(
    ("given", "free", "threads"), [(["--threads", "3"], 1.0, "3"), ([], 1.2, "1"), ([], 4.0, "4")]
)
def test_training_takes_the_threads_that_are_free(place, given, free, threads):
    """On a machine of four cores, of which others leave some: a sentence where they leave few."""
    code = (
        "import sys, torch; from genbook import cli, machine; machine.cores = lambda: 4; "
        f"machine.free_cores = lambda: {free}; status = cli.main(sys.argv[1:]); "
        "print(torch.get_num_threads()); sys.exit(status)"
    )
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    arguments = ["train", "vae-bmnist", "--smoke", "--set", "epochs=1", *given]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True, text=True, timeout=300, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == threads
    assert ("others use 2.8 of 4 cores: 1 thread;" in done.stderr) == (free == 1.2)


# Records


def test_evaluate_agrees_and_finds_a_changed_figure(genbook, recorded, place):
    status, out, _ = genbook("evaluate", recorded, "--json")
    rows = json.loads(out)
    assert status == 0 and {row["verdict"] for row in rows} == {"agrees"}
    assert all(row["recorded"] == row["recomputed"] for row in rows), (
        "the same machine gives the same bits"
    )
    path = place / "runs" / recorded / "run.json"
    record = json.loads(path.read_text("utf-8"))
    record["metrics"]["test_log_px"]["value"] += 1
    path.write_text(json.dumps(record), encoding="utf-8")
    status, out, err = genbook("evaluate", "--all", "--json")
    assert f"{recorded}: 4 figures agree; test_log_px differs (1 of 1, " in err
    verdicts = {row["figure"]: row["verdict"] for row in json.loads(out)}
    assert status == 1 and [
        figure for figure, verdict in verdicts.items() if verdict != "agrees"
    ] == ["test_log_px"]


def test_evaluate_says_what_it_could_not_check(genbook, recorded, place, monkeypatch):
    path = place / "runs" / recorded / "run.json"
    record = json.loads(path.read_text("utf-8"))
    record["data"]["splits"]["test"]["sha256"] = "0" * 64
    path.write_text(json.dumps(record), encoding="utf-8")
    status, out, _ = genbook("evaluate", recorded, "--json")
    verdicts = {row["figure"]: row["verdict"] for row in json.loads(out)}
    assert status == 0
    assert (
        verdicts["test_elbo"] == "not checked: other images" and verdicts["valid_elbo"] == "agrees"
    )

    record["recipe"]["data"] = record["data"]["name"] = "binarized_mnist"
    path.write_text(json.dumps(record), encoding="utf-8")
    status, out, err = genbook("evaluate", "--all", "--json")
    assert status == 0
    assert {row["verdict"] for row in json.loads(out)} == {"not checked: no data"}
    assert "genbook data fetch binarized_mnist" in err


def test_evaluate_goes_on_past_a_broken_record(genbook, recorded, place):
    subprocess.run(["cp", "-r", place / "runs" / recorded, place / "runs" / "broken"], check=True)
    (place / "runs" / "broken" / "model.safetensors").write_bytes(b"short")
    status, out, err = genbook("evaluate", "--all", "--json")
    assert status == 1 and err.startswith("broken: ")
    assert {row["run"] for row in json.loads(out)} == {recorded}


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (lambda run: (run / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda run: (run / "model.safetensors").write_bytes(b"x" * 99), "model.safetensors"),
        (lambda run: (run / "run.json").write_text("{", encoding="utf-8"), "not JSON"),
        (lambda run: (run / "run.json").unlink(), "run.json is missing"),
        (
            lambda run: (run / "metrics.csv").write_text("epoch,loss\n0,nan\n", encoding="utf-8"),
            "nan",
        ),
        (
            lambda run: (run / "samples" / "epoch-000-means.png").write_bytes(b"x"),
            "not a readable picture",
        ),
        (
            lambda run: (run / "run.json").write_text(
                (run / "run.json").read_text("utf-8").replace('"latent"', '"lalent"')
            ),
            "'lalent'",
        ),
    ],
    ids=[
        "no weights",
        "bad weights",
        "bad record",
        "no record",
        "bad metrics",
        "bad picture",
        "unknown field",
    ],
)
def test_records_finds_damage(genbook, recorded, place, damage, told):
    assert genbook("records")[0] == 0
    damage(place / "runs" / recorded)
    status, out, err = genbook("records")
    assert status == 1 and told in err and recorded in err and recorded in out
    status, out, _ = genbook("records", "--json")
    assert status == 1 and json.loads(out)[0]["problems"]


def test_no_records_is_no_failure(genbook):
    status, out, err = genbook("records")
    assert (status, out) == (0, "") and "no records" in err
    assert genbook("evaluate", "--all", "--json")[:2] == (0, "[]\n")


def test_sample(genbook, recorded, place):
    from PIL import Image

    status, out, _ = genbook("sample", recorded, "-n", "9")
    assert status == 0 and f"{recorded}-samples.png" in out
    first = (place / f"{recorded}-samples.png").read_bytes()
    assert Image.open(place / f"{recorded}-samples.png").size[0] >= 3 * 28
    genbook("sample", recorded, "-n", "9", "--out", "again.png")
    genbook("sample", recorded, "-n", "9", "--out", "other.png", "--seed", "1")
    assert (place / "again.png").read_bytes() == first != (place / "other.png").read_bytes()


# Equations and data


def notebook(folder, name, *cells):
    folder.mkdir(exist_ok=True)
    kinds = [
        {"cell_type": "code" if source.startswith("#|") else "markdown", "source": source}
        for source in cells
    ]
    (folder / f"{name}.ipynb").write_text(json.dumps({"cells": kinds}), encoding="utf-8")


def test_equations(genbook, place):
    nbs = place / "nbs"
    notebook(
        nbs,
        "a",
        "# A\n\n$$\na\n$$ (eq-a)\n\n$$\nb\n$$ (eq-b)",
        "#| checks: eq-a\nassert True",
        "#| defines: eq-b\nb = 1",
    )
    status, out, err = genbook("equations", "--nbs", "nbs", "--json")
    assert (status, err) == (0, "")
    assert [row["status"] for row in json.loads(out)] == ["checked", "definition"]
    notebook(nbs, "b", "# B\n\n$$\nc\n$$ (eq-c)")
    status, out, err = genbook("equations", "--nbs", "nbs")
    assert status == 1 and err.endswith(": eq-c\n") and "eq-c\tb\tunchecked" in out
    notebook(nbs, "c", "# C\n\n$$\na\n$$ (eq-a)", "#| checks: eq-bb\nassert True")
    status, out, err = genbook("equations", "--nbs", "nbs")
    assert (
        status == 1
        and "already labelled" in err
        and "did you mean 'eq-b'" in err
        and "Traceback" not in err
    )


def test_data_list_and_check(genbook, place):
    status, out, _ = genbook("data", "list", "--json")
    at_hand = {row["name"]: row["at hand"] for row in json.loads(out)}
    assert status == 0 and at_hand["toy_digits"] == "drawn" and at_hand["svhn"] == "no"
    status, out, err = genbook("data", "check", "toy_digits")
    assert (status, err) == (0, "") and out.count("drawn by genbook") == 3
    (place / "binarized_mnist.npz").write_bytes(b"not an archive")
    status, out, err = genbook("data", "check", "binarized_mnist", "--data-root", ".")
    assert status == 1 and out.count("damaged") == 3 and "genbook data fetch binarized_mnist" in err
    status, out, _ = genbook("data", "check", "binarized_mnist", "--data-root", ".", "--json")
    assert status == 1 and json.loads(out)["ok"] is False
    assert genbook("data", "fetch", "toy_digits")[1].startswith("toy_digits is drawn")


@pytest.mark.parametrize("name", ["simsiam-cifar10", "byol-cifar10"])
def test_marks_between_fields_are_no_fields(name):
    recipe = cli.find_recipe(name)[1]
    with pytest.raises(ValueError, match="no field"):
        recipes.override(recipe, ["_=1"])
    assert recipes.override(recipe, ["epochs=3"]).epochs == 3
