"""The command line, `oscar-bridge COMMAND`: its commands, and `entry`, which chooses among them.

Exit status: 0 well, 1 failed at run time, 2 a configuration or a command line that can't be used, 75 a
configuration with nothing wrong but that files which it names are not there, or secrets' files empty.
"""

from bridge.cli.entry import main

__all__ = ["main"]
