"""What `oscar-bridge check` tells of a directory."""

import os
from collections.abc import Sequence

from bridge.core.ports import Finding, Findings
from oscar_bridge_folder.config import FolderConfig


def check(config: FolderConfig, key: str) -> Sequence[Finding]:
    """Look at the directory; leave its files alone."""
    findings = Findings(f"source {key}")
    if not config.path.is_dir():
        findings.problem(f"{config.path} is no directory", "make it, or correct `path`")
    elif not os.access(config.path, os.R_OK | os.W_OK | os.X_OK):
        findings.problem(f"files in {config.path} can't be moved", "let the bridge's user write there")
    else:
        findings.ok(f"{config.path} is there, and its files can be moved")
    return findings.found
