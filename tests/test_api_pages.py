"""The pages on the package: every module is on one of them, and what docstrings say arrives there."""

import re

import pytest

from genbook.book import module_chapters
from genbook.book.names import as_rst

SAID = re.compile(
    r"Derived in \{doc\}`/(.+)`\.\n\n```\{eval-rst\}\n\.\. automodule:: genbook\.(.+)\n"
)


def test_every_module_is_on_one_page(root):
    pages = sorted((root / "nbs" / "appendix" / "package").glob("*.md"))
    said = [found for page in pages for found in SAID.findall(page.read_text("utf8"))]
    assert sorted((module, chapter) for chapter, module in said) == sorted(
        module_chapters().items()
    )
    listed = (root / "_toc.yml").read_text("utf8")
    assert all(f"appendix/package/{page.stem}\n" in listed for page in pages)


@pytest.mark.parametrize(
    "line, rst",
    [
        ("plain", "plain"),
        ("at `x`, where", "at ``x``, where"),
        ("{eq}`eq-a`", ":eq:`eq-a`"),
        ("of `x`s", r"of ``x``\ s"),
        ("|x| and *y* and z_", r"\|x\| and \*y\* and z\_"),
        ("`a` `b`", r"``a`` ``b``"),
    ],
)
def test_a_line_of_a_docstring_is_plain_or_code(line, rst):
    assert as_rst(line) == rst


def test_a_page_says_what_a_function_takes_returns_and_refuses(site):
    page = (site / "appendix" / "package" / "vae.html").read_text("utf8")
    entry = page[page.index('id="genbook.vae.elbo.elbo_terms"') :][:20_000]
    text = re.sub(r"<[^>]+>", "", entry)
    for said in ("how many of them with “mc”", "Returns", "E_q log p(x|z)", "ValueError", "(17."):
        assert said in text, said
    assert 'id="genbook.vae.binarised_mnist.BernoulliVAE.encode"' in page  # methods too


def test_a_name_in_the_text_leads_to_its_entry(site):
    page = (site / "vae" / "elbo.html").read_text("utf8")
    assert re.search(r'href="\.\./appendix/package/vae\.html#genbook\.vae\.elbo\.elbo_terms"', page)
