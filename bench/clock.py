"""The clock of another process's CPU time."""


def cpu_clock(pid: int) -> int:
    """Give the id of the clock of the CPU time of process `pid`, user and system, in all its threads.

    It counts nanoseconds, where /proc/PID/stat has ticks of 10 ms, and neither the process's children nor
    anybody else: it is what clock_getcpuclockid(3) gives on Linux (`MAKE_PROCESS_CPUCLOCK` with
    `CPUCLOCK_SCHED`, include/linux/posix-timers.h), for which Python has a name only of one's own threads.
    """
    return (~pid << 3) | 2
