"""What a chapter looks like: ideas first, bookkeeping last; folded imports; prose in Markdown; short cells and functions."""

import ast
import json
import re
from pathlib import Path

import pytest

from genbook import book

ROOT = Path(__file__).resolve().parent.parent
CHAPTERS = book.chapters(ROOT / "nbs")
MODULES = {
    path.relative_to(ROOT / "genbook").as_posix(): path
    for path in sorted((ROOT / "genbook").rglob("*.py"))
    if path.name != "_modidx.py"
}
WORDS = 12  # a label of a figure may have as many; what has more is a sentence
CELL, FUNCTION, MODULE, CHECK = 80, 100, 500, 20  # lines


def code_cells(path: Path):
    """Of each code cell its number, its directives, its text and its syntax tree."""
    sources = book.cells(json.loads(path.read_text("utf8")), "code")
    for number, source in enumerate(sources, start=1):
        directives, code = book.split_directives(source)
        plain = re.sub(r"^([ \t]*)[%!].*", r"\1pass", code, flags=re.MULTILINE)
        yield number, directives, code, ast.parse(plain)


def exported(directives: dict[str, str]) -> bool:
    return bool(directives.keys() & {"export", "exports", "exporti"})


def folded(directives: dict[str, str]) -> bool:
    return (
        "hide" in directives
        or directives.get("code-fold") == "true"
        or directives.get("echo") == "false"
    )


def words(text: str) -> int:
    return len(re.findall(r"[A-Za-z]{2,}", text))


def sentences(tree: ast.AST) -> list[str]:
    """F-strings with more words than a label has, and strings of words between which an `if` decides."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            constant = " ".join(str(v.value) for v in node.values if isinstance(v, ast.Constant))
            found += [constant] if words(constant) > WORDS else []
        elif isinstance(node, ast.IfExp):
            branches = [node.body, node.orelse]
            if all(isinstance(b, ast.Constant) and isinstance(b.value, str) for b in branches):
                text = " / ".join(b.value for b in branches)
                found += [text] if words(text) > WORDS / 2 else []
    return found


@pytest.mark.parametrize("name", CHAPTERS)
def test_prose_is_markdown(name):
    """A cell that shows Markdown shows a table or a formula; sentences are for cells of text, with numbers by glue."""
    for number, _, code, tree in code_cells(CHAPTERS[name]):
        shows = "Markdown" in {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if shows and not re.search(r"\bdef \w+", code):
            assert not sentences(tree), f"code cell {number}: {sentences(tree)[0]}"


@pytest.mark.parametrize("name", CHAPTERS)
def test_imports_and_long_checks_are_folded(name):
    for number, directives, code, tree in code_cells(CHAPTERS[name]):
        imports = sum(isinstance(node, ast.Import | ast.ImportFrom) for node in tree.body)
        if imports > 1 and imports > len(tree.body) / 2:
            assert folded(directives), f"code cell {number} imports and is not folded"
        if "checks" in directives and not exported(directives):
            assert len(code.splitlines()) <= CHECK or folded(directives), (
                f"code cell {number} checks in {len(code.splitlines())} lines and is not folded"
            )


def said(tree):
    """Lines of docstrings, which nobody should save."""
    lines = 0
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            lines += node.body[0].end_lineno - node.body[0].lineno + 1
    return lines


@pytest.mark.parametrize("name", CHAPTERS)
def test_cells_are_short_enough_to_read(name):
    for number, directives, code, _ in code_cells(CHAPTERS[name]):
        if exported(directives):
            lines = len(code.strip().splitlines()) - said(ast.parse(code))
            assert lines <= CELL, f"code cell {number} has {lines} lines"


@pytest.mark.parametrize("name", CHAPTERS)
def test_bookkeeping_comes_last(name):
    text = "\n".join(book.cells(json.loads(CHAPTERS[name].read_text("utf8")), "markdown"))
    headings = re.findall(r"^## (.*?)\s*$", book.without_code(text), re.MULTILINE)
    if "Keeping the record" in headings:
        place = headings.index("Keeping the record")
        assert set(headings[place + 1 :]) <= {"References"}
        assert "Exercises" not in headings[place:]


@pytest.mark.parametrize("name", CHAPTERS)
def test_a_module_is_named_after_its_chapter(name):
    for _, directives, _, _ in code_cells(CHAPTERS[name]):
        if "default_exp" in directives:
            assert directives["default_exp"] == name.replace("/", ".").replace("-", "_")


@pytest.mark.parametrize("name", MODULES)
def test_modules_and_functions_are_short(name):
    text = MODULES[name].read_text("utf8")
    tree = ast.parse(text)
    assert len(text.splitlines()) - said(tree) <= MODULE, "does more than one thing"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION, f"{node.name} has {lines} lines"


def test_the_instrument_notices():
    prose = "Markdown(f'The model reaches {x} nats, which is more than what the other one had before it was trained.')"
    choice = "Markdown('It is better than the other one.' if x > y else 'It is worse than it.')"
    table = "Markdown('| a | b |\\n' + f'| {x} | {y} nats an image |')"
    assert sentences(ast.parse(prose)) and sentences(ast.parse(choice))
    assert not sentences(ast.parse(table))
    assert not folded({}) and folded({"hide": ""}) and folded({"code-fold": "true"})


@pytest.mark.fast
def test_real_data_without_a_record_are_scikit_learns_digits_on_one_page():
    """The index promises a record for every number on real data, with this one exception."""
    found = {
        name
        for name, path in CHAPTERS.items()
        for _, _, code, _ in code_cells(path)
        if "sklearn.datasets" in code
    }
    assert found == {"vae/latent-variables"}
    index = (ROOT / "nbs" / "index.ipynb").read_text("utf8")
    assert "scikit-learn" in index and "scikit-learn" in (ROOT / "README.md").read_text("utf8")


def test_a_reference_to_an_equation_leads_to_one():
    texts = {name: path.read_text("utf8") for name, path in CHAPTERS.items()}
    labels = {
        label for text in texts.values() for label in re.findall(r"\$\$ \((eq-[\w-]+)\)", text)
    }
    assert len(labels) > 250
    for name, text in texts.items():
        lost = set(re.findall(r"\{eq\}`([\w-]+)`", text)) - labels
        assert not lost, f"{name} refers to {', '.join(sorted(lost))}, which no equation is called"
