"""What is kept on this machine's disk: today the dead letters, with their causes."""

from bridge.store.schema import Summary, read_dead_letter, read_dead_letters
from bridge.store.store import Store

__all__ = ["Store", "Summary", "read_dead_letter", "read_dead_letters"]
