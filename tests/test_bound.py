"""The book in one piece: a book of two chapters is built with the real configuration, and bound as a PDF and as an EPUB."""

import json
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from genbook import cli
from genbook.book import bound

TOC = (
    "format: jb-book\nroot: index\nparts:\n- caption: First part\n  chapters:\n  - file: one\n"
    "- caption: Second part\n  chapters:\n  - file: part/two\n"
)
PROSE = r"""# A chapter

A formula, $\alpha < \beta$, and one with a number, which {eq}`eq-other` is not:

$$
\int_0^1 x^2\,\mathrm{d}x = \tfrac13
$$ (eq-NAME)

| a | b |
|---|---|
| 1 | $x_2$ |

```{exercise}
:label: ex-NAME
Why $\gamma$?
```

````{solution} ex-NAME
:class: dropdown
Because of $\delta \ne \varepsilon$.
````
"""
PICTURE = (
    "#| code-fold: true\nimport io\nfrom PIL import Image\nfrom IPython.display import Image as Shown\n"
    "buffer = io.BytesIO()\nImage.new('RGB', (40, 20), 'red').save(buffer, 'PNG')"
)
SHOWN = "#| checks: eq-NAME\n#| label: fig-NAME\n#| fig-cap: Red.\nShown(buffer.getvalue())"


def chapter(name: str, other: str) -> str:
    prose = PROSE.replace("NAME", name).replace("eq-other", f"eq-{other}")
    cells = [{"cell_type": "markdown", "id": "prose", "metadata": {}, "source": prose}]
    for number, code in enumerate([PICTURE, SHOWN.replace("NAME", name)]):
        cell = {"cell_type": "code", "id": f"c{number}", "metadata": {}, "source": code}
        cells.append({**cell, "outputs": [], "execution_count": None})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return json.dumps(
        {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    )


@pytest.fixture(scope="module")
def place(root, tmp_path_factory) -> Path:
    """The folder of the small book, built; a space is in its path."""
    folder = tmp_path_factory.mktemp("a small book")
    (folder / "nbs/part").mkdir(parents=True)
    (folder / "genbook").mkdir()
    shutil.copy(root / "_config.yml", folder)
    shutil.copytree(root / "_static", folder / "_static")
    (folder / "references.bib").touch()
    (folder / "_toc.yml").write_text(TOC, encoding="utf-8")
    first = {
        "cell_type": "markdown",
        "id": "a",
        "metadata": {},
        "source": "# A book\n\n{eq}`eq-one`",
    }
    text = json.dumps({"cells": [first], "metadata": {}, "nbformat": 4, "nbformat_minor": 5})
    (folder / "nbs/index.ipynb").write_text(text, encoding="utf-8")
    (folder / "nbs/one.ipynb").write_text(chapter("one", "two"), encoding="utf-8")
    (folder / "nbs/part/two.ipynb").write_text(chapter("two", "one"), encoding="utf-8")
    command = [
        Path(sys.executable).with_name("jupyter-book"), "build", "nbs", "--config", "_config.yml",
        "--toc", folder / "_toc.yml", "--path-output", ".", "-W", "-n", "--keep-going",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def files(place) -> dict[str, Path]:
    """The bound books; the site is left as it was."""
    try:
        bound.browser()
    except ValueError as error:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(
            f"{error}; nothing is bound"
        )
    before = {path: path.stat().st_mtime_ns for path in (place / "_build").rglob("*")}
    made = {kind: place / f"book.{kind}" for kind in ("pdf", "epub")}
    for path in made.values():
        assert cli.main(["bind", "--site", str(place / "_build/html"), str(path)]) == 0
    assert before == {path: path.stat().st_mtime_ns for path in (place / "_build").rglob("*")}
    return made


def test_a_pdf_has_its_chapters_pictures_and_an_outline(files):
    pdf = files["pdf"].read_bytes()
    pages = bound.pages_of(pdf)
    assert (pages["one"], pages["part-two"]) == (3, 4)  # behind the first page and the contents
    assert pages["part-two--equation-eq-two"] == 4
    assert pdf.count(b"/Type /Page\n") == 4
    assert len(re.findall(rb"/Subtype /Image", pdf)) >= 1
    assert b"/Outlines" in pdf


def test_what_is_printed_has_every_formula_set_and_nothing_to_press(place, files):
    pages = bound.gather(place / "_build/html")
    formulas = sum(len(page.body.select(".math")) for page in pages)
    assert formulas == 10
    text = bound.typeset(bound.document(place / "_build/html", pages), formulas)
    assert len(re.findall("<mjx-container", text)) == formulas
    assert not re.search(r"\\\(|\\\[|<script|<button|headerlink", text)
    assert text.count("Because of") == 2 and text.count("Folded code, 5 lines") == 2
    with pytest.raises(ValueError, match="1 of 1 formulas could not be set"):
        broken = bound.Page("one", "", "", bound._soup(r"<p><span class='math'>\(\x\)</span></p>"))
        bound.typeset(bound.document(place / "_build/html", [broken]), 1)


def test_an_epub_is_whole(files):
    """Every file is listed and is XML, names of places are single, links lead somewhere, formulas are MathML."""
    with zipfile.ZipFile(files["epub"]) as archive:
        first = archive.infolist()[0]
        assert (first.filename, first.compress_type) == ("mimetype", zipfile.ZIP_STORED)
        assert archive.read("mimetype") == b"application/epub+zip"
        names = set(archive.namelist()) - {"mimetype", "META-INF/container.xml", "book.opf"}
        trees = {
            name: ElementTree.fromstring(archive.read(name))
            for name in archive.namelist()
            if name.endswith((".xhtml", ".opf", ".xml"))
        }
        text = "".join(archive.read(name).decode() for name in names if name.endswith(".xhtml"))
    listed = {item.get("href") for item in trees["book.opf"].iter() if item.tag.endswith("}item")}
    assert listed == names and sum(name.startswith("images/") for name in names) == 1
    places = {}
    for name, tree in trees.items():
        ids = [tag.get("id") for tag in tree.iter() if tag.get("id")]
        assert len(ids) == len(set(ids)), name
        places[name] = set(ids)
    links = [
        urlsplit(tag.get(key))
        for name, tree in trees.items()
        if name.endswith(".xhtml")
        for tag in tree.iter()
        for key in ("href", "src")
        if tag.get(key)
    ]
    assert any(link.fragment == "one--equation-eq-one" for link in links)
    for link in links:
        if not link.scheme:
            assert link.path in names, link
            assert not link.fragment or link.fragment in places[link.path], link
    assert text.count("<math ") == 10 and not re.search(r"\\\(|\\\[|mjx-|<script|<button", text)
    assert text.count("Because of") == 2 and "Second part" in text


def test_without_chromium_one_sentence_says_so(place, monkeypatch, capsys):
    monkeypatch.setattr(bound.shutil, "which", lambda name: None)
    assert cli.main(["bind", "--site", str(place / "_build/html"), "x.pdf"]) == 2
    assert "apt-get install chromium" in capsys.readouterr().err
