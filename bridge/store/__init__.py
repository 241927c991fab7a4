"""What is kept on this machine's disk: parked events and dead letters, with their causes; and the journal.

Begin with `store`, which is what the daemon asks, then read `access`, `writer` and `file`: how it gets to the
disk. The SQL is in `changes`, `parked`, `jobs`, `spool_rows`, `window_rows` and `merges`, the tables are in
`migrations`. What commands ask is in `letters`, `waiting` and `find`, what they order in `orders` and
`moves`. A damaged file is the matter of `salvage`, `rescue` and `pages`. The journal is no table: `journal`
writes it into `segments`, and `history` reads it.
"""

from bridge.store.config import JournalConfig, StoreConfig
from bridge.store.journal import JournalFiles
from bridge.store.letters import (
    Count,
    Filter,
    Summary,
    page_of_dead_letters,
    read_dead_letter,
    read_dead_letters,
)
from bridge.store.store import Store
from bridge.store.waiting import (
    Choice,
    Known,
    Stranded,
    Waiting,
    list_waiting,
    page_of_waiting,
    read_stranded,
)

__all__ = [
    "Choice",
    "Count",
    "Filter",
    "JournalConfig",
    "JournalFiles",
    "Known",
    "Store",
    "StoreConfig",
    "Stranded",
    "Summary",
    "Waiting",
    "list_waiting",
    "page_of_dead_letters",
    "page_of_waiting",
    "read_dead_letter",
    "read_dead_letters",
    "read_stranded",
]
