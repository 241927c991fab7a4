"""`oscar-bridge check`: what a person can mend before the bridge runs, or while it runs badly."""

from bridge.checkup.cases import UNKNOWN_ID, Result, run_cases
from bridge.checkup.preview import End, Preview, ends_of, preview
from bridge.checkup.report import (
    json_of_findings,
    json_of_preview,
    lines_of_findings,
    lines_of_no_event,
    lines_of_preview,
    lines_of_routes,
)
from bridge.checkup.systems import check

__all__ = [
    "UNKNOWN_ID",
    "End",
    "Preview",
    "Result",
    "check",
    "ends_of",
    "json_of_findings",
    "json_of_preview",
    "lines_of_findings",
    "lines_of_no_event",
    "lines_of_preview",
    "lines_of_routes",
    "preview",
    "run_cases",
]
