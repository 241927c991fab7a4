"""Whether a draft can be used, as the configuration's own reader sees it; its mistakes at DCNiOS's places."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory

from bridge.core.errors import ConfigurationError
from bridge.dcnios.draft import CONFIGURATION, Draft
from bridge.dcnios.remarks import Origin, Report
from bridge.dcnios.writing import written
from bridge.settings import load


def mistakes_into(report: Report, draft: Draft, top: Origin) -> None:
    """Load `draft`, and put each mistake into the report. The files that it names need not be there yet."""
    with TemporaryDirectory(prefix="oscar-bridge-") as directory:
        file = Path(directory) / CONFIGURATION
        file.write_text(written(draft, "a trial"), encoding="utf-8")
        try:
            load(file, {}, files=False)
        except ConfigurationError as error:
            for mistake in error.mistakes:
                key = re.sub(r"^(?:\w+\.[^.]+|routes\[\d+\])\.", "", mistake.key)
                report.wrong(draft.origin_of(mistake.key) or top, f"as `{key}`: {mistake.message}")
