"""That the bench works: every row gets a figure. How good the figures are is for a quiet machine to tell."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.timeout(180)
def test_the_quick_bench_gives_every_row_a_figure() -> None:
    bench = subprocess.run(
        [sys.executable, "-m", "bench", "--quick"], capture_output=True, text=True, timeout=170, check=False
    )
    assert bench.returncode == 0, bench.stderr
    head, _, *rows = [line for line in bench.stdout.splitlines() if line.startswith("|")]
    assert head.startswith("| | Median | Min–max | Budget |")
    assert len(rows) >= 20
    for row in rows:
        _, name, median, span, _budget, _verdict, _ = (cell.strip() for cell in row.split("|"))
        assert name
        assert re.match(r"-?[\d,]+(\.\d+)?( \S+)?$", median), row
        assert re.match(r"-?[\d,.]+–-?[\d,.]+$", span), row
