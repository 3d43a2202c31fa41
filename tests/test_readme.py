"""The README: its results are those of the records, its commands exist."""

import re
import shlex
from pathlib import Path

from genbook.results import scoreboard
from genbook.runs import runs_root

README = Path(__file__).resolve().parent.parent / "README.md"


def blocks(language: str) -> list[str]:
    """The fenced blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", README.read_text(), flags=re.DOTALL)


def test_results_are_those_of_the_records():
    table = re.search(
        r"<!-- scoreboard -->\n(.*?)\n<!-- /scoreboard -->", README.read_text(), flags=re.DOTALL
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
    from genbook.vae.binarised_mnist import RECIPES

    named = set(re.findall(r"`?genbook (?:train|sample) ([a-z][\w-]+)", README.read_text()))
    assert named and named <= RECIPES.keys()
    assert (runs_root() / "vae-bmnist-best" / "run.json").exists()


def test_every_record_has_a_headline():
    names = {path.parent.name for path in runs_root().glob("*/run.json")}
    assert names == set(scoreboard.headlines()), (
        "each record has a row in the scoreboard, and each row a record"
    )
