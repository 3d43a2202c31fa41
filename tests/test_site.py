"""The built site: every link leads somewhere, nothing is asked of another host, no directive is left on a page."""

import json
import re
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup
from PIL import Image

from genbook import book

# What makes a browser fetch a file when it shows the page. An <a href> does not.
LOADED = {
    "script": ["src"],
    "link": ["href"],
    "img": ["src", "srcset"],
    "source": ["src", "srcset"],
    "iframe": ["src"],
    "object": ["data"],
    "embed": ["src"],
    "video": ["src", "poster"],
    "audio": ["src"],
    "use": ["href", "xlink:href"],
    "image": ["href", "xlink:href"],
}
NOT_LOADED = {
    "next",
    "prev",
    "search",
    "index",
    "author",
    "canonical",
    "help",
    "copyright",
    "license",
}


@cache
def page(path: Path) -> BeautifulSoup:
    return BeautifulSoup(path.read_text("utf8"), "html.parser")


@cache
def anchors(path: Path) -> set[str]:
    return {tag["id"] for tag in page(path).find_all(id=True)} | {
        tag["name"] for tag in page(path).find_all("a", attrs={"name": True})
    }


@pytest.fixture(scope="module")
def pages(site, root) -> dict[str, Path]:
    """The pages of the book and the ones Sphinx adds; a page that an earlier build left behind is not looked at."""
    nbs = root / "nbs"
    written = [page.relative_to(nbs).with_suffix("").as_posix() for page in nbs.rglob("*.md")]
    names = [*book.chapters(nbs), *written, "search", "genindex", "py-modindex"]
    found = {name: site / f"{name}.html" for name in names}
    assert not (missing := [name for name, path in found.items() if not path.is_file()]), (
        f"no page for {missing}"
    )
    return found


def foreign(url: str) -> bool:
    return bool(re.match(r"\s*(?:[a-z][a-z0-9+.-]*:)?//", url, re.IGNORECASE))


def test_no_dead_internal_link_or_anchor(pages, site):
    dead = []
    for name, path in pages.items():
        for tag in page(path).find_all(["a", "link"], href=True):
            link = urlsplit(tag["href"])
            if link.scheme or link.netloc:
                continue
            target = (path.parent / unquote(link.path)).resolve() if link.path else path
            if target.is_dir():
                target = target / "index.html"
            if not target.is_file() or site.resolve() not in target.resolve().parents:
                dead.append(f"{name}: {tag['href']}")
            elif (
                link.fragment
                and target.suffix == ".html"
                and unquote(link.fragment) not in anchors(target)
            ):
                dead.append(f"{name}: {tag['href']} (no such anchor)")
    assert not dead, "\n".join(dead)


def test_every_file_that_a_page_loads_is_there(pages):
    missing = []
    for name, path in pages.items():
        for tag in page(path).find_all(list(LOADED)):
            if set(tag.get("rel") or ()) & NOT_LOADED:
                continue
            for attribute in LOADED[tag.name]:
                url = urlsplit(tag.get(attribute) or "")
                if url.path and not url.scheme and not (path.parent / unquote(url.path)).is_file():
                    missing.append(f"{name}: {tag.get(attribute)}")
    assert not missing, "\n".join(missing)


def test_no_page_loads_anything_from_another_host(pages, site):
    named = []
    for name, path in pages.items():
        soup = page(path)
        for tag in soup.find_all(list(LOADED)):
            if set(tag.get("rel") or ()) & NOT_LOADED:
                continue
            named += [
                f"{name}: {tag.get(key)}" for key in LOADED[tag.name] if foreign(tag.get(key) or "")
            ]
        styles = [tag.string or "" for tag in soup.find_all("style")] + [
            tag["style"] for tag in soup.find_all(style=True)
        ]
        named += [f"{name}: {url}" for style in styles for url in foreign_in_css(style)]
        scripts = [tag.string or "" for tag in soup.find_all("script") if not tag.get("src")]
        named += [f"{name}: {url}" for script in scripts for url in foreign_in_script(script)]
        named += [
            f"{name}: {tag}" for tag in soup.find_all("link", rel=["preconnect", "dns-prefetch"])
        ]
    for sheet in site.rglob("*.css"):
        named += [
            f"{sheet.relative_to(site)}: {url}" for url in foreign_in_css(sheet.read_text("utf8"))
        ]
    assert not named, "\n".join(named)


def foreign_in_css(style: str) -> list[str]:
    style = re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL)
    urls = re.findall(r"url\(\s*[\"']?([^\"')]+)", style) + re.findall(
        r"@import\s+[\"']([^\"']+)", style
    )
    return [url for url in urls if foreign(url)]


def foreign_in_script(script: str) -> list[str]:
    """Addresses in a page's own scripts; names of XML vocabularies are no addresses."""
    return [
        url
        for url in re.findall(r"[\"'`]((?:https?:)?//[^\"'`\s]+)", script)
        if "www.w3.org/" not in url
    ]


def test_every_page_is_meant_as_one(site):
    """The themes' templates are HTML as well, but no pages."""
    assert [path.name for path in (site / "_static").rglob("*.html")] == []


def test_no_directive_is_left_on_a_page(pages, site):
    left = []
    for name, path in pages.items():
        for block in page(path).find_all("pre"):
            left += [
                f"{name}: {line}"
                for line in block.get_text().splitlines()
                if re.match(r"\s*#\s*\|", line)
            ]
        for line in page(path).get_text().splitlines():
            left += [f"{name}: {line}"] if re.match(r"\s*#\|", line) else []
    for download in (site / "_sources").rglob("*.ipynb"):
        for source in book.cells(json.loads(download.read_text("utf8")), "code"):
            left += [
                f"{download.name}: {line}"
                for line in source.splitlines()
                if re.match(r"#\s*\|", line)
            ]
            assert "nbdev_export" + "()" not in source or "book" in download.name, download.name
    assert not left, "\n".join(left)


def test_a_download_is_plain_markdown_with_folded_solutions(site, root):
    """What only the site understands is in words, numbers stand where roles were, and no solution is open."""
    marks = re.compile(r"\{[\w:-]+\}`|^[`:]{3,}\{|^\([\w-]+\)=$|\$\$ \(eq-|…", re.MULTILINE)
    for name, chapter in book.chapters(root / "nbs").items():
        download = json.loads((site / "_sources" / f"{name}.ipynb").read_text("utf8"))
        for text in book.cells(download, "markdown"):
            plain = re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)
            assert not marks.search(plain), f"{name}: {marks.search(plain)[0]!r} in {text[:80]!r}"
        hidden = [
            "".join(cell["source"]) for cell in download["cells"] if cell["metadata"].get("jupyter")
        ]
        within = False
        for cell in json.loads(chapter.read_text("utf8"))["cells"]:
            source = "".join(cell["source"])
            if cell["cell_type"] == "markdown":
                within = "{solution-start}" in source or (within and "{solution-end}" not in source)
            elif within:
                assert book.split_directives(source)[1] in hidden, f"{name}: {source[:80]!r}"


def test_every_chapter_offers_its_notebook(pages, site, root):
    for name in book.chapters(root / "nbs"):
        links = [urlsplit(tag["href"]).path for tag in page(pages[name]).find_all("a", href=True)]
        assert any(link.endswith(f"_sources/{name}.ipynb") for link in links), (
            f"{name}: no download"
        )
        assert (site / "_sources" / f"{name}.ipynb").is_file()


def test_every_covered_equation_has_its_mark_and_its_anchor(pages, root):
    for equation in book.coverage(root / "nbs"):
        soup = page(pages[equation.chapter])
        block = soup.find(id=f"equation-{equation.label}".lower().replace("_", "-"))
        assert block is not None, (
            f"{equation.label} is not an equation on the page of {equation.chapter}"
        )
        mark = block.find("a", class_="equation-mark")
        assert mark is not None and mark["title"], equation.label
        for place in equation.checked_by:
            assert f"check-{equation.label}" in anchors(pages[place])


def test_every_image_says_what_it_shows(pages):
    silent = []
    for name, path in pages.items():
        for image in page(path).find_all("img"):
            alt = (image.get("alt") or "").strip()
            if not alt or re.fullmatch(r"[\w/.]*\.(png|svg|jpe?g)", alt):
                silent.append(f"{name}: {image.get('src')} {alt!r}")
    assert not silent, "\n".join(silent)


def test_text_in_figures_can_be_read_on_a_phone(pages):
    """Seven pixels, or next to it, where a figure is 342 wide. A figure says how high its smallest text is; other pictures have none."""
    told, small = 0, []
    for name, path in pages.items():
        for image in page(path).select("article img[src$='.png']"):
            with Image.open(path.parent / unquote(image["src"])) as picture:
                words, width = picture.info.get("Smallest text"), picture.width / 2
            if words:
                told += 1
                pixels = float(words.split()[0]) * min(1, 342 / width)
                small += [f"{name}: {image['alt'][:40]}: {pixels:.1f}"] * (0 < pixels < 6.8)
    assert told > 100 and not small, "\n".join(small)


def test_no_cell_failed(pages):
    failed = [
        name
        for name, path in pages.items()
        if page(path).find(class_="output_traceback") or page(path).find(class_="traceback")
    ]
    assert not failed


def test_the_first_page_is_the_first_thing_a_visitor_gets(site):
    assert (site / "index.html").is_file()
    assert not page(site / "index.html").find("meta", attrs={"http-equiv": "refresh"})
