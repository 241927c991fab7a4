"""What is kept on this machine's disk: parked events and dead letters, with their causes."""

from bridge.store.config import StoreConfig
from bridge.store.letters import Count, Filter, Summary, read_dead_letter, read_dead_letters
from bridge.store.store import Store
from bridge.store.waiting import Choice, Known, Stranded, Waiting, list_waiting, read_stranded

__all__ = [
    "Choice",
    "Count",
    "Filter",
    "Known",
    "Store",
    "StoreConfig",
    "Stranded",
    "Summary",
    "Waiting",
    "list_waiting",
    "read_dead_letter",
    "read_dead_letters",
    "read_stranded",
]
