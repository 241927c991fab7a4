"""Looking for what a check said."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.core.ports import Finding, Severity


def said(
    found: Sequence[Finding], severity: str, *words: str, about: str | None = None, remedy: str | None = None
) -> Finding:
    """Give the one finding with this severity and these words; fails, showing all, when there is none."""
    for finding in found:
        if (
            finding.severity == severity
            and all(word in finding.message for word in words)
            and (about is None or finding.about == about)
            and (remedy is None or remedy in finding.remedy)
        ):
            return finding
    shown = "\n".join(f"{one.severity} {one.about}: {one.message} → {one.remedy}" for one in found)
    raise AssertionError(f"no {severity} {words} → {remedy} in:\n{shown}")


def is_well(found: Sequence[Finding]) -> bool:
    """Whether there is neither a problem nor a warning, and something was looked at."""
    bad = [finding for finding in found if finding.severity in (Severity.PROBLEM, Severity.WARNING)]
    assert not bad, bad
    return any(finding.severity is Severity.OK for finding in found)
