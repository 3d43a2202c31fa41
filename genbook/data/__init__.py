"""Data sets: what they are, where their files lie, and how a run opens them once."""

from .fetching import fetch
from .loading import Splits, check, digest, load, provenance
from .reading import Copy, cache_root, data_roots, find, import_torchvision, parse_amat
from .sets import DATASETS, Colour, DataError, DataSet, Photographs, Split, data_set, own_images
from .toys import toy_digits, toy_grey_digits, toy_house_numbers

__all__ = [
    "DATASETS",
    "Colour",
    "Copy",
    "DataError",
    "DataSet",
    "Photographs",
    "Split",
    "Splits",
    "cache_root",
    "check",
    "data_set",
    "data_roots",
    "digest",
    "fetch",
    "find",
    "import_torchvision",
    "load",
    "own_images",
    "parse_amat",
    "provenance",
    "toy_digits",
    "toy_grey_digits",
    "toy_house_numbers",
]
