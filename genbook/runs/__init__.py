"""The records of runs: the files they are made of, reading and making one, and what is wrong with one."""

from .audit import FILE_LIMIT, TOTAL_LIMIT, validate, validate_all
from .files import (
    describe_weights,
    load_weights,
    number,
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
    "is_place",
    "load_weights",
    "mean_metric",
    "metric",
    "number",
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
