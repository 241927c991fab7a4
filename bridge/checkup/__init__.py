"""`oscar-bridge check`: what a person can mend before the bridge runs, or while it runs badly."""

from bridge.checkup.preview import Preview, preview
from bridge.checkup.report import json_of_findings, json_of_preview, lines_of_findings, lines_of_preview
from bridge.checkup.systems import check

__all__ = [
    "Preview",
    "check",
    "json_of_findings",
    "json_of_preview",
    "lines_of_findings",
    "lines_of_preview",
    "preview",
]
