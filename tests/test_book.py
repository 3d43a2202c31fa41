"""The notebooks and the package: one is exported from the other, and the sources are clean."""

import configparser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from genbook import book

NOTEBOOKS = book.chapters(Path(__file__).parent.parent / "nbs")


def test_package_is_what_the_notebooks_export(root, tmp_path):
    shutil.copytree(
        root / "nbs", tmp_path / "nbs", ignore=shutil.ignore_patterns(".ipynb_checkpoints")
    )
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(root / name, tmp_path)
    for path in (root / "genbook").rglob("__*__.py"):  # which are written by hand
        target = tmp_path / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_export")], cwd=tmp_path, check=True, timeout=120
    )

    def modules(folder):
        paths = [path for path in sorted(folder.rglob("*.py")) if path.name != "_modidx.py"]
        return {path.relative_to(folder).as_posix(): path.read_text("utf8") for path in paths}

    exported, committed = modules(tmp_path / "genbook"), modules(root / "genbook")
    assert exported.keys() == committed.keys(), "modules were added or left over; run `make export`"
    different = [name for name in exported if exported[name] != committed[name]]
    assert not different, f"{different} differ from what the notebooks export; run `make export`"


def test_a_chapter_runs_without_its_page(root):
    """`make book` runs every chapter; `nbdev_test` is what one uses while writing."""
    subprocess.run(
        [Path(sys.executable).with_name("nbdev_test"), "--path", "nbs/divergences.ipynb"],
        cwd=root,
        check=True,
        timeout=300,
    )


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_is_clean(name):
    notebook = json.loads(NOTEBOOKS[name].read_text("utf8"))
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert not any(cell["outputs"] or cell["execution_count"] for cell in code), (
        "holds outputs; run `nbdev_clean`"
    )
    assert notebook["metadata"].keys() <= {"kernelspec", "language_info"}
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(ids) == len(set(ids)), "two cells have the same id"
    titles = [
        line
        for text in book.cells(notebook, "markdown")
        for line in book.without_code(text).splitlines()
        if line.startswith("# ")
    ]
    assert len(titles) == 1, f"a chapter has one title, this one {titles}"
    for source in book.cells(notebook, "code"):
        book.split_directives(source)  # raises on an unknown directive


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_notebook_leaves_torch_as_it_found_it(name):
    """nbdev_test runs several notebooks in one process, in any order."""
    code = "\n".join(book.cells(json.loads(NOTEBOOKS[name].read_text("utf8")), "code"))
    switches = re.findall(r"^torch\.set_grad_enabled\((True|False)\)", code, re.MULTILINE)
    assert switches[-1:] != ["False"], "switch gradients on again in the last cell"
    types = re.findall(r"^torch\.set_default_dtype\(torch\.(\w+)\)", code, re.MULTILINE)
    assert types[-1:] in ([], ["float32"]), "go back to float32 in the last cell"
    outside = re.findall(
        r"^torch\.set_default_", code, re.MULTILINE
    )  # of functions, which put it back
    assert len(outside) == len(types)


def test_every_notebook_is_in_the_table_of_contents(root):
    listed = re.findall(
        r"^[\s-]*(?:root|file):\s*(\S+)", (root / "_toc.yml").read_text("utf-8"), re.MULTILINE
    )
    nbs = root / "nbs"
    written = [page.relative_to(nbs).with_suffix("").as_posix() for page in nbs.rglob("*.md")]
    assert sorted(listed) == sorted([*NOTEBOOKS, *written])
    assert len(listed) == len(set(listed))


def test_reader_is_pure_and_leaves_no_directive(root):
    for name, path in NOTEBOOKS.items():
        text = path.read_text("utf8")
        page = book.read_notebook(text, root)
        assert page == book.read_notebook(text, root), name
        copy = json.loads(book.reader_copy(text))
        for cell in [*page.cells, *copy["cells"]]:
            assert cell["cell_type"] != "code" or not re.search(
                r"^#\s*\|", cell["source"], re.MULTILINE
            ), name


def test_every_requirement_is_locked(root):
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    kinds = ("requirements", "export_requirements", "dev_requirements")
    wanted = [name for kind in kinds for name in settings["DEFAULT"][kind].split()]
    text = re.sub(
        r"^#.*\n", "", (root / "requirements.lock").read_text("utf-8"), flags=re.MULTILINE
    )
    lines = re.sub(r" \\\n\s+", " ", text).splitlines()
    exact, hashes = r"[A-Za-z0-9._-]+==[A-Za-z0-9.!]+", r"( --hash=sha256:[0-9a-f]{64})+"
    strange = [line for line in lines if not re.fullmatch(exact + hashes, line)]
    assert not strange, "a version that isn't exact, or a file of it without a hash"
    unhashed = (root / "requirements-torch.lock").read_text("utf-8").splitlines()
    unhashed = [line for line in unhashed if not line.startswith("#")]
    assert [line.split("==")[0] for line in unhashed] == ["torch", "torchvision"]
    assert all(re.fullmatch(exact, line) for line in unhashed)
    assert "--require-hashes" in (root / "Makefile").read_text("utf-8")
    lines += unhashed

    def normal(name):
        return re.sub(r"[-_.]+", "-", name).lower()

    locked = {normal(line.split("==")[0]) for line in lines}
    missing = [name for name in wanted if normal(re.split(r"[<>=!~\[]", name)[0]) not in locked]
    assert not missing, f"not in requirements.lock: {missing}; run `make lock`"


def test_jupyterlab_is_locked_beside_the_book(root):
    """`make lab` adds packages to the environment, and changes none that is in it."""
    settings = configparser.ConfigParser(delimiters=["="])
    settings.read(root / "settings.ini", encoding="utf-8")
    texts = [
        (root / name).read_text("utf-8") for name in ("requirements.lock", "requirements-lab.lock")
    ]
    book_s, labs = (dict(re.findall(r"^([a-z0-9-]+)==(\S+)", text, re.MULTILINE)) for text in texts)
    assert {"jupyterlab", "jupyterlab-myst"} <= labs.keys() and not labs.keys() & book_s.keys()
    for wanted in settings["DEFAULT"]["lab_requirements"].split():
        asked = Requirement(wanted)
        assert asked.specifier.contains(labs[asked.name]), f"{wanted}: run `make lock`"
    assert len(re.findall(r"^\S+==\S+ \\\n +--hash=sha256:", texts[1], re.MULTILINE)) == len(labs)


def test_the_table_of_mutants_meets_the_goal(root):
    """Every checked equation has its row; 98 % are killed, no equation has less than 80 %, and each survivor a reason."""
    from genbook.book import survivors

    rows, found = survivors.read_table(root / "mutants.csv"), survivors.checks(root / "nbs")
    assert {row.equation for row in rows} == {label for check in found for label in check.labels}
    for row in rows:
        assert 0 <= row.killed <= row.tried and row.tried - row.killed == len(row.survivors), row
        assert row.commit and row.date, row
    assert list(survivors.shortcomings(rows, found)) == []


def test_a_chapter_says_how_long_it_takes_to_read(root):
    words, code = "word " * 599, "\n".join(["x = 1"] * 20)
    cells = [
        {"cell_type": "markdown", "source": f"# {words}"},
        {"cell_type": "code", "source": code},
        {"cell_type": "code", "source": f"#| code-fold: true\n{code}"},  # is not read
    ]
    assert book.reading_minutes({"cells": cells}) == 4  # (600 + 200) / 200
    for name, path in NOTEBOOKS.items():
        page = book.read_notebook(path.read_text("utf8"), root)
        first = next(cell.source for cell in page.cells if cell.cell_type == "markdown")
        assert " minutes to read" in first.split("\n\n")[1], name
