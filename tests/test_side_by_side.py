"""Several runs side by side stop as one and go on as one, whatever stops them: Ctrl-C, a kill of all, of the first, or of one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from genbook import cli

NAMES = ("vae-bmnist", "vae-mlp-z2")
CHANGES = ["--smoke", "--set", "epochs=14", "--set", "hidden=40,40"]
FOLDERS = [f"{name}+smoke+epochs=14+hidden=40,40" for name in NAMES]
LIMIT = 300  # seconds until a test gives up


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The weights of both runs, made one after the other in this process."""
    root = tmp_path_factory.mktemp("undisturbed")
    environment = pytest.MonkeyPatch()
    environment.setenv("GENBOOK_RUNS", str(root))
    environment.setenv("OMP_NUM_THREADS", "1")
    code = "import sys; from genbook import cli; sys.exit(cli.main(sys.argv[1:]))"
    for name in NAMES:
        command = [sys.executable, "-c", code, "train", name, *CHANGES]
        assert subprocess.run(command, capture_output=True, timeout=LIMIT).returncode == 0
    environment.undo()
    return [(root / folder / "model.safetensors").read_bytes() for folder in FOLDERS]


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("GENBOOK_DATA", raising=False)
    return tmp_path / "runs"


def start():
    command = [sys.executable, "-m", "genbook.cli", "train", *NAMES, *CHANGES]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_until(holds, process=None):
    deadline = time.monotonic() + LIMIT
    while not holds():
        assert time.monotonic() < deadline and (process is None or process.poll() is None)
        time.sleep(0.02)


def begun(root):
    """Whether both runs have something to go on from."""
    return all((root / f"{folder}.unfinished" / "checkpoint.pt").exists() for folder in FOLDERS)


def processes_of(root):
    """The processes that train into a folder, by the run's name."""
    found = {}
    for entry in os.listdir("/proc"):
        try:
            words = Path(f"/proc/{entry}/cmdline").read_text("utf-8").split("\0")
        except (OSError, ValueError):
            continue
        for folder in FOLDERS:
            if f"--out={root / folder}" in words:
                found[folder] = int(entry)
    return found


def goes_on(root, undisturbed):
    """The same command again makes both records, with the weights of undisturbed runs."""
    again = start()
    out, err = again.communicate(timeout=LIMIT)
    assert again.returncode == 0, err
    assert [line.split("\t")[1] for line in out.splitlines()[1:]] == ["finished"] * 2
    for folder, weights in zip(FOLDERS, undisturbed, strict=True):
        assert (root / folder / "model.safetensors").read_bytes() == weights
        assert not (root / f"{folder}.unfinished").exists()
    return out, err


linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere there is no /proc")


@linux
def test_ctrl_c_stops_both_and_both_go_on(place, undisturbed):
    first = start()
    wait_until(lambda: begun(place), first)
    first.send_signal(signal.SIGINT)
    out, err = first.communicate(timeout=LIMIT)
    assert first.returncode == 130, err
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[1] for row in rows[1:]] == ["stopped", "stopped"]
    assert err.splitlines()[-1] == f"to go on: genbook train {' '.join((*NAMES, *CHANGES))}"
    assert begun(place) and not processes_of(place)
    _, err = goes_on(place, undisturbed)
    for folder in FOLDERS:
        log = (place / f"{folder}.log").read_text("utf-8")
        assert log.count("epoch 1/14") == 1 and "stopped after step" in log  # it went on
        assert f"\n{folder}\ttraining\t" in f"\n{err}"


@linux
def test_what_is_killed_outright_leaves_nobody_behind(place, undisturbed):
    """The processes notice by themselves that whoever started them is gone, and keep what they have."""
    first = start()
    wait_until(lambda: begun(place), first)
    first.kill()
    first.wait()
    wait_until(lambda: not processes_of(place))
    assert begun(place)
    goes_on(place, undisturbed)


@linux
def test_a_run_that_is_killed_stops_no_other(place, undisturbed):
    first = start()
    wait_until(lambda: begun(place), first)
    os.kill(processes_of(place)[FOLDERS[0]], signal.SIGKILL)
    out, err = first.communicate(timeout=LIMIT)
    assert first.returncode == 1
    rows = [line.split("\t") for line in out.splitlines()]
    assert [row[1] for row in rows[1:]] == ["killed by signal 9", "finished"]
    assert "to go on" in err
    goes_on(place, undisturbed)


@linux
def test_all_are_killed_at_once(place, undisturbed):
    first = start()
    wait_until(lambda: begun(place), first)
    for process in processes_of(place).values():
        os.kill(process, signal.SIGKILL)
    first.kill()
    first.wait()
    goes_on(place, undisturbed)


def test_a_name_given_twice_and_a_wrong_name_start_nothing(place, capsys):
    for names, told in (
        (("vae-bmnist", "vae-bmnist"), "once"),
        (("vae-bmnist", "vae-bminst"), "did you mean 'vae-bmnist'"),
    ):
        assert cli.main(["train", *names, "--smoke"]) == 2
        assert told in capsys.readouterr().err
    assert not place.exists()


def test_options_reach_every_run_and_cores_are_shared(place, capsys, monkeypatch):
    seen = []

    def start_all(lanes):
        seen.extend(lanes)
        return [0] * len(lanes)

    monkeypatch.setattr(cli, "watch_all", start_all)
    options = ["--set", "epochs=3", "--precision", "fp32", "--device", "cpu", "--no-resume"]
    given = ["train", *NAMES, *options, "--no-compile", "--threads", "7", "--out", "elsewhere"]
    assert cli.main(given) == 0
    for lane, name in zip(seen, NAMES, strict=True):
        assert str(lane.out) == f"elsewhere/{name}+epochs=3"
        assert lane.command[1:] == [
            "-m", "genbook.cli", "train", name, f"--out={lane.out}", "--set=epochs=3", "--set=precision=fp32",
            "--device=cpu", "--no-resume", "--no-compile", "--threads=3", "--on-leash",
        ]  # fmt: skip
        assert lane.epochs == 3
    rows = capsys.readouterr().out.splitlines()[1:]
    assert [row.split("\t")[1] for row in rows] == ["waiting", "waiting"]
