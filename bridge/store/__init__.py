"""What is kept on this machine's disk: parked events and dead letters, with their causes."""

from bridge.store.config import StoreConfig
from bridge.store.letters import Count, Filter, Summary, read_dead_letter, read_dead_letters
from bridge.store.store import Store

__all__ = [
    "Count",
    "Filter",
    "Store",
    "StoreConfig",
    "Summary",
    "read_dead_letter",
    "read_dead_letters",
]
