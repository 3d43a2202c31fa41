"""The records of runs: the files they are made of, reading and making one, and what is wrong with one."""

from .audit import FILE_LIMIT, TOTAL_LIMIT, listing, validate, validate_all
from .files import (
    describe_weights,
    file_digests,
    load_weights,
    number,
    read_file,
    replacing,
    save_weights,
    short_number,
    sweep,
    write_atomic,
    write_metrics,
)
from .places import UNFINISHED, Place, is_place, settle_all, unfinished
from .record import (
    Run,
    all_runs,
    device_info,
    mean_metric,
    metric,
    runs_root,
    version_info,
    write_record,
)

__all__ = [
    "FILE_LIMIT",
    "TOTAL_LIMIT",
    "UNFINISHED",
    "Place",
    "Run",
    "all_runs",
    "describe_weights",
    "device_info",
    "file_digests",
    "is_place",
    "listing",
    "load_weights",
    "mean_metric",
    "metric",
    "number",
    "read_file",
    "replacing",
    "runs_root",
    "save_weights",
    "settle_all",
    "short_number",
    "sweep",
    "unfinished",
    "validate",
    "validate_all",
    "version_info",
    "write_atomic",
    "write_metrics",
    "write_record",
]
