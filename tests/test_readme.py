"""The README: its results are those of the records, its commands exist."""

import re
import shlex
import subprocess
from pathlib import Path

from genbook import families
from genbook.results import scoreboard
from genbook.runs import book_folder, book_names

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text("utf-8"), flags=re.DOTALL)


def test_results_are_those_of_the_records():
    table = re.search(
        r"<!-- scoreboard -->\n(.*?)\n<!-- /scoreboard -->",
        README.read_text("utf-8"),
        flags=re.DOTALL,
    )[1]
    assert table == scoreboard.markdown(scoreboard.rows()), "run `make export`"
    assert table.count("\n") >= 2 + len(scoreboard.headlines()) - 1


def test_commands_exist():
    from typer.testing import CliRunner

    from genbook.cli import app

    lines = [line for block in blocks("bash") for line in block.splitlines() if "genbook " in line]
    assert len(lines) >= 5
    for line in lines:
        words = shlex.split(line, comments=True)[1:]
        command = words[:2] if words[0] == "data" else words[:1]
        assert CliRunner().invoke(app, [*command, "--help"]).exit_code == 0, line


def test_named_recipes_exist():
    words = r"`?genbook (?:train|sample) ([a-z][\w-]+)(?![\w/])"  # and no run's folder
    named = set(re.findall(words, README.read_text("utf-8")))
    assert named and named <= families.all_recipes().keys()
    assert "vae-bmnist-best" in book_names(book_folder())


def test_every_record_has_a_headline():
    names = book_names(book_folder())
    assert names == sorted(scoreboard.headlines()), (
        "each record has a row in the scoreboard, and each row a record: `make export`"
    )
    committed = subprocess.run(
        ["git", "-C", README.parent, "ls-files", "runs/*/run.json"], capture_output=True, text=True
    )
    if committed.returncode == 0 and committed.stdout:  # in a checkout
        assert {line.split("/")[1] for line in committed.stdout.splitlines()} == set(names)
