"""The pages on the package: every module is on one of them, and what docstrings say arrives there."""

import ast
import re

import pytest

from genbook.book import module_chapters
from genbook.book.names import as_rst
from genbook.book.reader import module_files


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
        ("    timesteps: T.", r"    timesteps: \T."),
        ("    \b", "    "),
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


def described(docstring: str) -> set[str]:
    """The arguments that a docstring describes: `a` and `b` where a line says "a, b: two numbers."."""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)*)", docstring, re.MULTILINE)
    heads = re.findall(r"^ {4}([^\s:][^:\n]*): *\S", section[1] if section else "", re.MULTILINE)
    return {name.strip(" `*") for head in heads for name in head.split(",")}


def undescribed(node: ast.AST, within: str = ""):
    """Public functions and methods below a node, each with an argument that its docstring leaves out."""
    for child in node.body:
        if isinstance(child, ast.ClassDef) and not child.name.startswith("_"):
            yield from undescribed(child, f"{within}{child.name}.")
        elif isinstance(child, ast.FunctionDef) and not child.name.startswith("_"):
            taken = [*child.args.posonlyargs, *child.args.args, *child.args.kwonlyargs]
            left = [argument.arg for argument in taken if argument.arg not in ("self", "cls")]
            said = described(ast.get_docstring(child) or "")
            yield from (f"{within}{child.name}: {name}" for name in left if name not in said)


@pytest.mark.fast
def test_every_argument_is_described(root):
    """Under Args, where help() and the pages on the package show it; commands describe theirs in their options."""
    lacking = [
        f"genbook.{module}.{one}"
        for module in module_chapters(root / "nbs")
        if not module.startswith("cli")
        for one in undescribed(ast.parse(module_files(module, root)[-1].read_text("utf8")))
    ]
    assert not lacking, "describe these under Args:\n" + "\n".join(lacking)


@pytest.mark.fast
@pytest.mark.parametrize(
    "docstring, left",
    [
        ("Text.", ["a", "b", "c"]),
        ("Text.\n\n    Args:\n        a: one.\n        b, c: two.", []),
        ("Text.\n\n    Args:\n        a: one.\n            b: of it.\n        c:", ["b", "c"]),
        ("Text.\n\n    Args:\n        a: one.\n    Raises:\n        b: two.", ["b", "c"]),
        ("a: one.\n\n    b: two.\n\n    Args:\n        c: three.", ["a", "b"]),
    ],
)
def test_an_argument_without_a_description_is_noticed(docstring, left):
    for code, name in (
        (f'def f(a, /, b, *, c):\n    """{docstring}"""', "f"),
        (f'class F:\n  def f(self, a, b=1, *, c=2):\n    """{docstring}"""', "F.f"),
    ):
        assert list(undescribed(ast.parse(code))) == [f"{name}: {argument}" for argument in left]
