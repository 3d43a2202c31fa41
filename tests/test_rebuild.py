"""A small book, built with the real configuration: only what a change touches runs again."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

TOC = "format: jb-book\nroot: index\nchapters:\n- file: part/one\n- file: part/two\n"


def notebook(title: str, *code: str) -> str:
    cells = [{"cell_type": "markdown", "id": "title", "metadata": {}, "source": f"# {title}"}]
    for number, source in enumerate(code):
        cell = {"cell_type": "code", "id": f"code-{number}", "metadata": {}, "source": source}
        cells.append({**cell, "outputs": [], "execution_count": None})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    )


@pytest.fixture
def small_book(root, tmp_path):
    for name in ("genbook/part", "runs/first", "runs/second", "nbs/part", "_static"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(root / "_config.yml", tmp_path)
    for name in ("genbook.css", "logo.svg"):
        shutil.copy(root / "_static" / name, tmp_path / "_static")
    (tmp_path / "references.bib").touch()
    (tmp_path / "_toc.yml").write_text(TOC, encoding="utf-8")
    (tmp_path / "genbook/deep.py").write_text("x = 1", encoding="utf-8")
    (tmp_path / "genbook/part/__init__.py").write_text("from ..deep import x", encoding="utf-8")
    (tmp_path / "genbook/part/shallow.py").touch()
    for name in ("first", "second"):
        (tmp_path / f"runs/{name}/run.json").write_text("1", encoding="utf-8")
    (tmp_path / "nbs/index.ipynb").write_text(notebook("A book"), encoding="utf-8")
    reads = "print('value', open('../../runs/' + 'first' + '/run.json').read())"
    (tmp_path / "nbs/part/one.ipynb").write_text(
        notebook("One", "#| eval: false\nimport genbook.part.shallow", reads)
    )
    (tmp_path / "nbs/part/two.ipynb").write_text(
        notebook("Two", "#| echo: false\nprint('two')"), encoding="utf-8"
    )
    return tmp_path


def build(folder: Path) -> set[str]:
    """Build the small book; the chapters that were run."""
    command = [
        Path(sys.executable).with_name("jupyter-book"), "build", "nbs", "--config", "_config.yml",
        "--toc", folder / "_toc.yml", "--path-output", ".", "-W", "-n", "--keep-going",
    ]  # fmt: skip
    done = subprocess.run(
        command,
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout
    return set(re.findall(r"^(\w+)\.ipynb: [\d.]+ s$", done.stdout, re.MULTILINE))


def test_only_what_changed_runs_again(small_book):
    page = small_book / "_build/html/part/one.html"
    assert build(small_book) == {"index", "one", "two"}
    (small_book / "runs/second/run.json").write_text("3", encoding="utf-8")  # nobody reads it
    assert build(small_book) == set()

    # Imported by the folder of a module that chapter one imports.
    (small_book / "genbook/deep.py").write_text("x = 2", encoding="utf-8")
    assert build(small_book) == {"one"}

    # One because of its record, two because of its code.
    (small_book / "runs/first/run.json").write_text("22222", encoding="utf-8")
    (small_book / "nbs/part/two.ipynb").write_text(
        notebook("Two", "print('three')"), encoding="utf-8"
    )
    assert build(small_book) == {"one", "two"}
    assert "value 22222" in page.read_text("utf8")
    assert "three" in (small_book / "_build/html/part/two.html").read_text("utf8")
