"""The pages on the package: every module is on one of them, and what docstrings say arrives there."""

import re

import pytest

from genbook.book import module_chapters
from genbook.book.names import as_rst


def test_every_part_has_a_page_that_is_listed(root):
    pages = sorted((root / "nbs" / "appendix" / "package").glob("*.md"))
    said = {re.search(r"\{package\} (\S+)", page.read_text("utf8"))[1].strip(".") for page in pages}
    assert said == {module.rpartition(".")[0] for module in module_chapters()}
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
    for said in ("how many of them with “mc”", "Returns", "E_q log p(x|z)", "ValueError"):
        assert said in text, said
    assert re.search(r"minus the second \(\d+\.\d+\)\.", text)
    assert 'id="genbook.vae.binarised_mnist.BernoulliVAE.encode"' in page  # methods too


def test_a_name_in_the_text_leads_to_its_entry(site):
    page = (site / "vae" / "elbo.html").read_text("utf8")
    assert re.search(r'href="\.\./appendix/package/vae\.html#genbook\.vae\.elbo\.elbo_terms"', page)
