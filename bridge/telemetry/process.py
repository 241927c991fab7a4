"""The process's own metrics, also where /proc shows processes alone (systemd's `ProcSubset=pid`)."""

from __future__ import annotations

import time

from prometheus_client import ProcessCollector


class Process(ProcessCollector):
    """prometheus_client's, which collects nothing where it can't read the time of boot in /proc/stat."""

    def _boot_time(self) -> float:
        """Return when the machine was started, in seconds since 1970: a process's start counts from then."""
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
