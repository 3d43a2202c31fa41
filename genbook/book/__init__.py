"""How the book makes itself: pages from notebooks, equations and their checks, lists of names, shapes that run."""

from genbook.book.copies import plain_cells, reader_copy
from genbook.book.equations import (
    Equation,
    coverage,
    coverage_table,
    labels,
    mark_equations,
    without_code,
)
from genbook.book.names import PublicName, api_list, api_lists, module_chapters, public_names
from genbook.book.reader import (
    DIRECTIVES,
    book_root,
    cell_metadata,
    cells,
    chapters,
    dependencies,
    digest,
    imported_modules,
    plain_text,
    read_notebook,
    reading_minutes,
    split_directives,
)
from genbook.book.site import page_digest, run_notebooks, setup

__all__ = [
    "DIRECTIVES",
    "Equation",
    "PublicName",
    "api_list",
    "api_lists",
    "book_root",
    "cell_metadata",
    "cells",
    "chapters",
    "coverage",
    "coverage_table",
    "dependencies",
    "digest",
    "imported_modules",
    "labels",
    "mark_equations",
    "module_chapters",
    "page_digest",
    "plain_cells",
    "plain_text",
    "public_names",
    "read_notebook",
    "reading_minutes",
    "reader_copy",
    "run_notebooks",
    "setup",
    "split_directives",
    "without_code",
]
