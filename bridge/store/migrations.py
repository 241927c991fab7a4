"""The tables of the store, version after version, and how a file is brought to the newest."""

from __future__ import annotations

import sqlite3

from bridge.core.errors import StoreError

MIGRATIONS = (
    # `number` is the public name of a row, never given twice; parked events go back in its order.
    """
    CREATE TABLE kept (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        id TEXT NOT NULL,
        service TEXT NOT NULL,
        type TEXT NOT NULL,
        subject TEXT,
        time TEXT,
        attributes TEXT NOT NULL,
        data BLOB NOT NULL,
        reason TEXT NOT NULL,
        cause TEXT NOT NULL,
        detail TEXT NOT NULL,
        status INTEGER,
        attempts INTEGER NOT NULL,
        first_attempt REAL,
        last_attempt REAL,
        kept_at REAL NOT NULL,
        UNIQUE (source, id, service)
    ) STRICT;
    CREATE INDEX kept_by_reason ON kept (reason, service, cause, number);
    """,
    # Parked events are read in order by service; a million of them must not be walked to find the dead.
    # `generations` remembers the last identity given to an event that was replayed as new: also when its row
    # is gone, the event comes again, dies again and is replayed again, it must get one that OSCAR never saw.
    """
    DROP INDEX kept_by_reason;
    CREATE INDEX kept_by_reason ON kept (reason, service, number);
    CREATE INDEX dead_by_number ON kept (number, service, cause) WHERE reason = 'dead';
    CREATE INDEX dead_by_age ON kept (kept_at) WHERE reason = 'dead';
    ALTER TABLE kept ADD COLUMN generation INTEGER NOT NULL DEFAULT 0;
    CREATE TABLE generations (
        source TEXT NOT NULL,
        id TEXT NOT NULL,
        service TEXT NOT NULL,
        generation INTEGER NOT NULL,
        given_at REAL NOT NULL,
        PRIMARY KEY (source, id, service)
    ) STRICT, WITHOUT ROWID;
    """,
    # What a source needs whose upstream keeps nothing (`spool_rows.py`). A spool's number is made of the
    # source's identity alone; `marks` counts its rows of `entered`, of which there may be millions.
    """
    CREATE INDEX spooled_by_source ON kept (source, number) WHERE reason = 'spooled';
    CREATE TABLE spools (
        number INTEGER PRIMARY KEY,
        source TEXT NOT NULL,
        position TEXT,
        listing INTEGER NOT NULL DEFAULT 0,
        marks INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE TABLE entered (
        spool INTEGER NOT NULL,
        version BLOB NOT NULL,
        listing INTEGER NOT NULL,
        PRIMARY KEY (spool, version)
    ) STRICT, WITHOUT ROWID;
    """,
    # The newest time that the store has seen, in seconds since 1970: whether the clock can be believed.
    """
    CREATE TABLE clock (seen REAL NOT NULL) STRICT;
    INSERT INTO clock SELECT coalesce(max(kept_at), 0) FROM kept INDEXED BY dead_by_age WHERE reason = 'dead';
    """,
    # The jobs that are this bridge's own and not known to have ended (`jobs.py`), each noted before it is
    # asked for.
    """
    CREATE TABLE jobs (
        number INTEGER PRIMARY KEY,
        name TEXT NOT NULL,
        service TEXT NOT NULL,
        progress INTEGER NOT NULL CHECK (progress BETWEEN 0 AND 2),
        accepted_at REAL,
        source TEXT NOT NULL,
        id TEXT NOT NULL,
        type TEXT NOT NULL,
        subject TEXT,
        time TEXT,
        attributes TEXT NOT NULL,
        data BLOB NOT NULL,
        UNIQUE (service, name)
    ) STRICT;
    """,
    # The jobs that succeeded and that this bridge has removed, in that order; an identity is made of the
    # lane's key and the job's name.
    """
    CREATE TABLE removed_jobs (
        number INTEGER PRIMARY KEY,
        identity BLOB NOT NULL UNIQUE,
        removed_at REAL NOT NULL
    ) STRICT;
    """,
    # Events that wait to be sent as one (`windows.py`). `merged` has the ids of those that were, and `merges`
    # what they went in; `bytes` is about what the two take.
    """
    ALTER TABLE kept ADD COLUMN in_window INTEGER;
    CREATE INDEX members ON kept (in_window, number) WHERE reason = 'window';
    CREATE TABLE windows (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        service TEXT NOT NULL,
        route TEXT NOT NULL,
        key TEXT NOT NULL,
        manner TEXT NOT NULL,
        opened REAL NOT NULL,
        last REAL NOT NULL,
        members INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        marked REAL,
        late INTEGER NOT NULL,
        due REAL NOT NULL,
        reason TEXT NOT NULL,
        closed INTEGER NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX open_windows ON windows (source, service, route, key) WHERE closed = 0;
    CREATE INDEX windows_by_due ON windows (due);
    CREATE TABLE merges (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        source TEXT NOT NULL,
        service TEXT NOT NULL,
        route TEXT NOT NULL,
        key TEXT NOT NULL,
        id TEXT NOT NULL,
        reason TEXT NOT NULL,
        members INTEGER NOT NULL,
        until REAL NOT NULL,
        size INTEGER NOT NULL
    ) STRICT;
    CREATE INDEX merges_by_key ON merges (source, service, route, key);
    CREATE INDEX merges_by_age ON merges (until);
    CREATE TABLE merged (
        id TEXT NOT NULL,
        merge INTEGER NOT NULL,
        PRIMARY KEY (id, merge)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX merged_by_merge ON merged (merge);
    CREATE TABLE remembered (bytes INTEGER NOT NULL) STRICT;
    INSERT INTO remembered VALUES (0);
    """,
    # What an event has in common with those that it goes one after another with. The events of one key are
    # read apart from the others.
    """
    ALTER TABLE kept ADD COLUMN order_key INTEGER;
    CREATE INDEX parked_by_key ON kept (service, order_key, number)
        WHERE reason = 'parked' AND order_key IS NOT NULL;
    """,
)
"""What takes a file from the version of its place in this list to the next; `user_version` counts them."""

VERSION = len(MIGRATIONS)


def upgrade(connection: sqlite3.Connection) -> None:
    """Bring the file to the newest version, and write to it at least once: so it can be written.

    Raises StoreError when it is newer than this bridge, sqlite3.Error when it can't be written.
    """
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version > VERSION:
        raise StoreError(
            f"the store has version {version} and this bridge knows versions up to {VERSION}: "
            "run the newer bridge that wrote it"
        )
    # One transaction: a failure leaves the file as it was, once the connection is closed.
    steps = "".join(MIGRATIONS[version:])
    connection.executescript(f"BEGIN IMMEDIATE; {steps} PRAGMA user_version = {VERSION}; COMMIT;")
