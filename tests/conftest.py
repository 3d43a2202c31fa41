"""What several test files need: the checkout and the built site."""

import os
import signal
from pathlib import Path

import pytest

from genbook.book.shapes import execute_shapes

execute_shapes()  # before a test imports the package: what signatures say of shapes is executed

ROOT = Path(__file__).resolve().parent.parent
FAST = {  # test files of a few seconds, which `make check` runs
    "test_book", "test_chapters", "test_descent", "test_diffusion", "test_elbo", "test_library", "test_likelihoods",
    "test_quality", "test_readme", "test_unet",
}  # fmt: skip


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.stem in FAST:
            item.add_marker("fast")


@pytest.fixture(scope="session", autouse=True)
def interruptible():
    """Ctrl-C as on a terminal: a shell that starts the tests in the background has it ignored, also in their children."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def root() -> Path:
    """The checkout."""
    return ROOT


@pytest.fixture(scope="session")
def site() -> Path:
    """The built site: `make test` builds it and says where it is; by hand, what `make book` left."""
    folder = Path(os.environ.get("GENBOOK_SITE") or ROOT / "_build" / "html")
    if not (folder / "searchindex.js").is_file():
        if os.environ.get("GENBOOK_SITE"):
            pytest.fail(f"no site in {folder}")
        pytest.skip("the site isn't built; run `make book` first")
    return folder
