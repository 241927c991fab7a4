"""A stand-in for a dCache site: its namespace, its storage events, and a WebDAV door, on one port.

Written from the sources of `dCache/dcache` (the frontend's `org.dcache.restful`, the namespace's and the
pools' event makers); each unpleasant behaviour names the file it comes from.

Begin with `namespace`: the files, and the events that each change makes. `inotify` and `channel` tell who
hears of them, `streams` writes them to clients. `events` and `lookups` are the REST interface, `door` is a
WebDAV one. What goes wrong on request is in `faults` if it lasts or waits, in `trouble` if it strikes at
once; `control` is for a person with curl.
"""

from bridge.sandbox.dcache.faults import Faults
from bridge.sandbox.dcache.namespace import Upload, Version
from bridge.sandbox.dcache.server import SandboxDcache
from bridge.sandbox.dcache.settings import Settings

__all__ = ["Faults", "SandboxDcache", "Settings", "Upload", "Version"]
