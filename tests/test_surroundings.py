"""Where the package is run: other alphabets, no user, a full disk, a folder with a space, no make, no checkout."""

import ast
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
from safetensors import SafetensorError

from genbook import cli, descent, families, machine
from genbook.data import loading, reading
from genbook.results import scoreboard


def run(*command, **more):
    """A command's exit status and what it said, in a process of its own."""
    done = subprocess.run(command, capture_output=True, timeout=300, **more)
    return done.returncode, done.stdout, done.stderr


# Alphabets


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252", "ascii"])
def test_every_recipe_is_shown_in_every_alphabet(encoding, monkeypatch):
    for name in families.all_recipes():
        out = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
        monkeypatch.setattr(sys, "stdout", out)
        assert cli.main(["recipes", name]) == 0
        assert out.buffer.getvalue().decode(encoding).startswith("field\tvalue")


def test_no_text_file_is_opened_in_the_machine_s_own_encoding(tmp_path):
    """A warning of Python is an error: of a record's making, its reading, its sampling, and the README's table."""
    code = (
        "import sys; from genbook.cli import main; from genbook.results.scoreboard import refresh\n"
        "for command in (['train', 'vae-bmnist', '--smoke', '--set', 'epochs=1', '--out', 'run'], ['sample', 'run'],\n"
        "                ['evaluate', 'run'], ['recipes'], ['data', 'list']):\n"
        "    assert main(command) == 0, command\n"
        "refresh('page.md')"
    )
    page = tmp_path / "page.md"
    page.write_text("é −\n<!-- scoreboard -->\n<!-- /scoreboard -->\n", encoding="utf-8")
    ours = "-Werror:'encoding' argument not specified:EncodingWarning:genbook"
    flags = ["-X", "warn_default_encoding", ours]
    for module in ("runs.files", "runs.record", "runs.places", "results.scoreboard", "machine"):
        flags.append(f"{ours}.{module}")
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    status, _, err = run(sys.executable, *flags, "-c", code, cwd=tmp_path, env=environment)
    assert status == 0, err.decode()
    text = page.read_text(encoding="utf-8")
    assert text.startswith("é −\n") and scoreboard.markdown(scoreboard.rows()) in text


def test_no_source_leaves_the_encoding_to_the_machine(root):
    open_text = re.compile(r"""\.read_text\(\)|\.write_text\([^,()]*\)|\bopen\([^"'()]*\)""")
    for path in [*(root / "genbook").rglob("*.py"), root / "setup.py", root / ".ci" / "hooks"]:
        text = path.read_text(encoding="utf-8")
        found = [each for each in open_text.findall(text) if "Image" not in each]
        assert not [each for each in found if each.startswith(".")], path


# Pipes


@pytest.mark.parametrize(
    "command", ["data", "data list", "recipes", "--help", "recipes vae-bmnist"]
)
def test_a_reader_that_goes_away_is_no_error(command):
    """As `head` does. The pipe is closed before anything is written."""
    reading_end, writing_end = os.pipe()
    os.close(reading_end)
    done = subprocess.run(
        [sys.executable, "-m", "genbook", *command.split()],
        stdout=writing_end, stderr=subprocess.PIPE, timeout=300,
    )  # fmt: skip
    os.close(writing_end)
    assert done.stderr == b""


# Nobody's machine

NOBODY = """
import os, pwd, sys
for name in ("HOME", "USER", "LOGNAME", "LNAME", "USERNAME", "XDG_CACHE_HOME", "GENBOOK_DATA"):
    os.environ.pop(name, None)
def unknown(number):
    raise KeyError("uid not found")
pwd.getpwuid = unknown
from genbook.cli import main
for command in (["data", "list"], ["train", "vae-bmnist", "--smoke", "--set", "epochs=1", "--out", "run"]):
    assert main(command) == 0, command
assert main(["data", "check", "mnist"]) == 1
"""


@pytest.mark.skipif(os.name != "posix", reason="elsewhere there is no such list of users")
def test_a_user_whom_the_system_does_not_know_and_who_has_no_home(tmp_path):
    status, _, err = run(sys.executable, "-c", NOBODY, cwd=tmp_path)
    assert status == 0 and b"Traceback" not in err, err.decode()
    assert (tmp_path / "run" / "run.json").is_file()


@pytest.mark.parametrize(
    ("environment", "wanted"),
    [
        ({"XDG_CACHE_HOME": "/here"}, "/here"),
        ({"HOME": "/home/her"}, "/home/her/.cache"),
    ],
)
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere caches lie elsewhere")
def test_where_a_cache_lies(environment, wanted, monkeypatch):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert str(machine.cache_folder()) == wanted


def test_paths_with_a_tilde_are_the_user_s(tmp_path, monkeypatch):
    """As in `--out=~/x`, which a shell passes on as it stands."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", "vae-bmnist", "--smoke", "--set", "epochs=1", "--out=~/x"]) == 0
    assert cli.main(["sample", "~/x", "-n", "1", "--out=~/y.png"]) == 0
    assert {"x", "y.png"} <= set(os.listdir(tmp_path)) and not (tmp_path / "~").exists()


# A full disk


@pytest.mark.parametrize("error", [SafetensorError("No space left on device"), OSError(28, "full")])
def test_a_full_disk_costs_the_decoded_copy_and_no_more(error, monkeypatch, tmp_path):
    """Whether Python or safetensors meets it, whose error is no OSError."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full(*_, **__):
        raise error

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    part = loading.open_part("toy_digits", "test", None, False).part
    (tmp_path / "source").write_bytes(b"x")
    copy = reading.Copy("mnist", "test", tmp_path, "parquet", (tmp_path / "source",))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        reading._keep_decoded_copy(copy, part)
    assert len(told) == 1 and "could not be kept" in str(told[0].message)


# Devices


@pytest.mark.parametrize(
    ("name", "count", "none"),
    [("mps", "backends.mps.is_available", False), ("cuda", "cuda.device_count", 0)],
)
def test_a_device_that_is_not_there_is_said_before_training(name, count, none, monkeypatch):
    monkeypatch.setattr(f"torch.{count}", lambda: none)
    with pytest.raises(ValueError, match=f"device is '{name}' but torch finds no card here"):
        descent.Plan(epochs=1, batch_size=1, lr=0.1, device=name)


def test_a_processor_without_mkldnn_has_no_bfloat16(monkeypatch):
    """As Apple's: torch has no such function there to ask."""
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    monkeypatch.delattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", raising=False)
    assert not descent.has_bf16("cpu") and descent.has_bf16("mps")


# Folders, and a machine without make


def test_the_makefile_takes_a_folder_with_a_space(root):
    text = (root / "Makefile").read_text(encoding="utf-8")
    for line in text.splitlines():
        for found in re.finditer(r"\$\((CURDIR|PYTHON)\)|\$\$(found|candidate)\b", line):
            before = line[: found.start()].replace(': $$("', ': $$(""')  # in a quoted text
            assert before.count('"') % 2 == 1, line


@pytest.mark.skipif(
    not shutil.which("make"), reason="no make here, which the README says how to do without"
)
def test_make_hands_a_folder_with_a_space_on_in_one_piece(root, tmp_path):
    """Its programs are stood in for by one that writes down what it was given."""
    place = tmp_path / "a folder" / "genbook"
    (place / ".venv" / "bin").mkdir(parents=True)
    for name in ("Makefile", "settings.ini", "setup.py", "pyproject.toml"):
        shutil.copy(root / name, place)
    for name in ("requirements.lock", "requirements-torch.lock"):
        shutil.copy(root / name, place)
    for name in ("python", "lock", "package"):  # made in this order, from what is older
        (place / ".venv" / f"{name}.stamp").touch()
    script = f'#!{sys.executable}\nimport sys\nprint("given:", sys.argv[1:])\n'
    for program in (".venv/bin/jupyter-book", ".venv/bin/genbook", "chromium"):
        (place / program).write_text(script, encoding="utf-8")
        (place / program).chmod(0o755)
    here = os.environ | {"PATH": f"{place}{os.pathsep}{os.environ['PATH']}"}
    for target, last in (
        ("pdf", ["bind", "_build/genbook.pdf"]),
        ("epub", ["bind", "_build/genbook.epub"]),
    ):
        status, out, err = run("make", target, cwd=place, env=here)
        given = [
            ast.literal_eval(line[6:])
            for line in out.decode().splitlines()
            if line.startswith("given:")
        ]
        assert status == 0 and len(given) == 2, err.decode()
        assert given[0][given[0].index("--toc") + 1] == str(place / "_toc.yml")
        assert given[1] == last


def test_without_make_the_same_commands_are_run(root):
    """Those of the README for pip alone stand in the Makefile, but for the folder of programs, and for silence."""
    readme, makefile = (
        (root / name).read_text(encoding="utf-8") for name in ("README.md", "Makefile")
    )
    section = readme[readme.index("### Without make") :]
    (block,) = re.findall(r"```powershell\n(.*?)```", section.split("\n## ")[0], flags=re.DOTALL)
    silent = re.compile(r" --quiet| -q\b| --disable-pip-version-check| -n 2 --dist loadfile")
    recipes = silent.sub("", makefile.replace('"$(CURDIR)/_toc.yml"', "_toc.yml"))
    lines = block.splitlines()
    assert len(lines) >= 6
    for line in lines[1:]:  # the first makes the environment
        assert line.startswith(".venv\\Scripts\\"), line
        words = shlex.split(line.replace("\\", "/"), comments=True)
        command = " ".join(["$(BIN)/" + words[0].removeprefix(".venv/Scripts/"), *words[1:]])
        assert command in recipes, command


def test_the_readme_s_commands_work_as_typed_one_after_the_other(root, tmp_path, monkeypatch):
    """In a folder without runs. Only what needs a network is left out; the runs that are evaluated are those made before."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GENBOOK_RUNS", str(tmp_path / "runs"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    text = (root / "README.md").read_text(encoding="utf-8")
    block, _ = re.findall(  # the second is of pictures that only the reader has
        r"```bash\n(.*?)```",
        text[text.index("## The command line") :].split("\n## ")[0],
        flags=re.DOTALL,
    )
    commands = [shlex.split(line, comments=True) for line in block.splitlines()]
    assert len(commands) >= 5 and all(words[0] == ".venv/bin/genbook" for words in commands)
    for words, line in zip(commands, block.splitlines()):
        before = set(os.listdir())
        if words[1:3] != ["data", "fetch"]:
            assert cli.main(words[1:]) == 0, line
        made, said = set(os.listdir()) - before, re.search(r"# (\S+\.png)$", line)
        assert said is None or made == {said[1]}, line
    assert cli.main(["records"]) == 0


@pytest.mark.parametrize(
    ("name", "field", "note"),
    [
        ("ddpm-svhn", "mults", "the course's: 8.07 million parameters"),
        ("ddpm-toy", "mults", ""),
        ("ddpm-toy", "dim", "channels at full size"),
        ("ddpm-toy", "data", "2,000 images to train on, 500 held out"),
        ("ddpm-toy", "seed", "of the weights, the order of the images and the noise"),
        ("vae-bmnist-best", "epochs", ""),
        ("vicreg-svhn", "data", "66,000 images to train on, 7,257 held out"),
    ],
)
def test_notes_of_a_recipe_are_true_of_it(name, field, note, capsys):
    assert cli.main(["recipes", name]) == 0
    rows = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert {row[0]: row[2] for row in rows}[field] == note


def test_a_shell_completes_commands():
    environment = {
        "_GENBOOK_COMPLETE": "complete_bash",
        "COMP_WORDS": "genbook tr",
        "COMP_CWORD": "1",
    }
    code = "import sys; from genbook.cli import main; sys.exit(main([]))"
    _, out, _ = run(sys.executable, "-c", code, env=os.environ | environment)
    assert out.decode().split() == ["train"]


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere `script` takes other options")
@pytest.mark.parametrize("command", ["data list", "recipes", "records", "recipes vae-bmnist"])
def test_tables_fit_a_terminal_of_sixty_columns(command):
    """`script` gives the command a terminal. No word is broken: the first column stands whole in every line."""
    typed = f"{sys.executable} -m genbook {command}"
    environment = os.environ | {"COLUMNS": "60", "TERM": "xterm-256color"}
    status, out, _ = run("script", "-qec", typed, os.devnull, env=environment)
    lines = re.sub(r"\x1b\[[0-9;]*m", "", out.decode()).splitlines()
    assert status == 0 and 50 <= max(len(line.rstrip()) for line in lines) <= 60
    wanted = {"recipes": "vae-bmnist-mc-one-draw", "records": "relatives-cifar10-rates"}
    assert any(wanted.get(command, "") in line for line in lines)
