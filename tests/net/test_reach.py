"""What `check` says of a name and of the way to it."""

from __future__ import annotations

import asyncio

from bridge.core.ports import Findings
from bridge.net.loop import Loop
from bridge.net.reach import reach
from tests.check.findings import said


def test_a_name_that_nobody_has_is_told() -> None:
    findings = Findings("x")
    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(reach(findings, "nobody.invalid", 9092, None, address_key="endpoint", ca_key="ca_file"))
    said(findings.found, "problem", "nobody.invalid can't be resolved")
