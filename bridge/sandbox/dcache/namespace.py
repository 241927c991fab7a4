"""The files and directories, and the events that each change makes.

Which events, and in which order, is from `MonitoringNameSpaceProvider.java` (what doors ask of the
namespace), `InotifyReplicaRecord.java` with `NotificationAmplifier.java` (what pools see of the data) and
`MonitoringVfs.java` (NFS).
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

ROOT_ID = "0" * 36
_DIRECTORY_SIZE = 512


class Notify(Protocol):
    """Where events go: `target` is the pnfsId that a watch may be on, `name` the child it happened to."""

    def __call__(
        self, flag: str, target: str, name: str | None, cookie: str | None, *, is_dir: bool
    ) -> None: ...


@dataclass(slots=True, eq=False)
class Node:
    """A file or a directory."""

    pnfs_id: str
    name: str
    parent: Node | None = field(repr=False)
    is_dir: bool = field(kw_only=True)
    created: int = field(init=False)
    mtime: int = field(init=False)
    size: int | None = field(init=False)
    data: bytes = b""
    children: dict[str, Node] = field(default_factory=dict, repr=False)
    readable: bool = True
    closed: bool = field(init=False)

    def __post_init__(self) -> None:
        self.created = self.mtime = int(time.time() * 1000)
        self.size = _DIRECTORY_SIZE if self.is_dir else None
        self.closed = self.is_dir

    @property
    def path(self) -> str:
        """The absolute path; `/` of the root."""
        names = [node.name for node in (self, *self.above()) if node.parent is not None]
        return "/" + "/".join(reversed(names))

    @property
    def hidden(self) -> bool:
        """Whether a directory above it may not be read."""
        return not all(node.readable for node in self.above())

    def above(self) -> Iterator[Node]:
        """Yield the directories above it, the nearest first."""
        node = self.parent
        while node is not None:
            yield node
            node = node.parent

    def touch(self) -> None:
        """Note a change: two contents of one pnfsId differ in their time, however fast the machine is."""
        self.mtime = max(int(time.time() * 1000), self.mtime + (not self.is_dir))


@dataclass(frozen=True, slots=True)
class Version:
    """One content of one file: what a bridge must make exactly one job of, once it is closed."""

    path: str
    pnfs_id: str
    size: int | None
    """In bytes; None while it is being uploaded."""
    mtime: int
    """In milliseconds since 1970."""
    closed: bool
    """Whether the IN_CLOSE_WRITE of this content was made."""


@dataclass(frozen=True, slots=True)
class Upload:
    """A file being written by a pool.

    The pool tells of it under the name it had when the writing began: `NotificationAmplifier.java` keeps
    the links that came with the transfer. A file renamed meanwhile is closed under its old name, and one
    that was removed is closed all the same.
    """

    node: Node
    parent_id: str
    name: str


class _Watchers:
    """Whoever watches a node, or its parent."""

    def __init__(self, notify: Notify) -> None:
        self.tell = notify

    def of_parent(self, flag: str, node: Node) -> None:
        if node.parent is not None:
            self.tell(flag, node.parent.pnfs_id, node.name, None, is_dir=node.is_dir)

    def of(self, flag: str, node: Node) -> None:
        self.tell(flag, node.pnfs_id, None, None, is_dir=node.is_dir)

    def of_upload(self, flag: str, upload: Upload) -> None:
        self.tell(flag, upload.parent_id, upload.name, None, is_dir=False)
        self.of(flag, upload.node)


class Namespace:
    """A tree. Every path is absolute; FileNotFoundError, NotADirectoryError and kin tell what is wrong."""

    def __init__(self, notify: Notify, dice: random.Random) -> None:
        self._watchers = _Watchers(notify)
        self._dice = dice
        self.root = Node(ROOT_ID, "", None, is_dir=True)
        self.moved_to_first: Callable[[], bool] = lambda: False

    # --- reading ---

    def lookup(self, path: str) -> Node:
        """The node of that path."""
        node = self.root
        for name in _names(path):
            if not node.is_dir:
                raise NotADirectoryError(path)
            child = node.children.get(name)
            if child is None:
                raise FileNotFoundError(path)
            node = child
        return node

    def versions(self) -> Iterator[Version]:
        """Every file that exists now, depth first."""
        stack = [("", self.root)]
        while stack:
            path, node = stack.pop()
            if node.is_dir:
                stack.extend((f"{path}/{child.name}", child) for child in node.children.values())
            else:
                yield Version(path, node.pnfs_id, node.size, node.mtime, node.closed)

    def list(self, directory: Node) -> list[Node]:
        """The children; a listing is an event itself (`MonitoringListHandler`)."""
        for flag in ("IN_OPEN", "IN_CLOSE_NOWRITE"):
            self._watchers.of(flag, directory)
            self._watchers.of_parent(flag, directory)
        return list(directory.children.values())

    def read(self, file: Node) -> bytes:
        """The content, with the events of a pool reading it (`InotifyChannel.java`)."""
        for flag in ("IN_OPEN", "IN_ACCESS", "IN_CLOSE_NOWRITE"):
            self._watchers.of_parent(flag, file)
            self._watchers.of(flag, file)
        return file.data

    # --- changing ---

    def mkdir(self, path: str, *, parents: bool = False) -> Node:
        """Make a directory. FileExistsError when it is there, unless `parents`, which makes those above."""
        names = _names(path)
        node = self.root
        for depth, name in enumerate(names, 1):
            if not node.is_dir:
                raise NotADirectoryError(path)
            child = node.children.get(name)
            if child is None:
                if depth < len(names) and not parents:
                    raise FileNotFoundError(path)
                child = self._add(node, name, is_dir=True)
            elif depth == len(names) and not parents:
                raise FileExistsError(path)
            node = child
        if not node.is_dir:
            raise NotADirectoryError(path)
        return node

    def begin_upload(self, path: str) -> Upload:
        """Create a file that has no size yet, and open it.

        A file of that name is removed first: with WebDAV and xroot an overwrite is a new file.
        """
        parent, name = self._place(path)
        old = parent.children.get(name)
        if old is not None:
            if old.is_dir:
                raise IsADirectoryError(path)
            self.remove(old)
        node = self._add(parent, name, is_dir=False)
        upload = Upload(node, parent.pnfs_id, name)
        self._watchers.of_upload("IN_OPEN", upload)
        return upload

    def finish_upload(self, upload: Upload, data: bytes) -> None:
        """Register content and size, then close: the size is there before IN_CLOSE_WRITE.

        `InotifyReplicaRecord.update` relies on that order.
        """
        node = upload.node
        if data:
            self._watchers.of_upload("IN_MODIFY", upload)
        node.data = data
        node.size = len(data)
        node.touch()
        if node.parent is not None:
            self._watchers.of("IN_ATTRIB", node)
            self._watchers.of_parent("IN_ATTRIB", node)
        node.closed = True
        self._watchers.of_upload("IN_CLOSE_WRITE", upload)

    def abort_upload(self, upload: Upload) -> None:
        """Give up an upload: the pool closes what never got a size, then the door removes it.

        `InotifyReplicaRecord.update` tells IN_CLOSE_WRITE in a `finally`, so of failed uploads too.
        """
        self._watchers.of_upload("IN_CLOSE_WRITE", upload)
        if upload.node.parent is not None:
            self.remove(upload.node)

    def rewrite(self, file: Node, data: bytes, closes: int = 1) -> None:
        """Write the same file again, as NFS does: one pnfsId, and a close for every write."""
        if file.is_dir:
            raise IsADirectoryError(file.path)
        file.data = data
        file.size = len(data)
        file.touch()
        file.closed = closes > 0
        for _ in range(closes):
            # MonitoringVfs.write: open, modify and close are made up for every single write.
            for flag in ("IN_OPEN", "IN_MODIFY", "IN_CLOSE_WRITE"):
                self._watchers.of(flag, file)
            for flag in ("IN_OPEN", "IN_MODIFY", "IN_CLOSE_WRITE"):
                self._watchers.of_parent(flag, file)

    def close_again(self, file: Node) -> None:
        """Tell one more IN_CLOSE_WRITE of the version there is, also of one that has no size yet."""
        file.closed = file.size is not None
        self._watchers.of_parent("IN_CLOSE_WRITE", file)
        self._watchers.of("IN_CLOSE_WRITE", file)

    def rename(self, node: Node, destination: str) -> None:
        """Move a file or a directory with all below it; a file in the way vanishes **without an event**.

        `MonitoringNameSpaceProvider.rename` tells of the moved one only. The two events have one cookie and
        no order: each watch has its own queue and sender (`Inotify.java`).
        """
        parent, name = self._place(destination)
        if node in (parent, *parent.above()):
            raise ValueError(f"{destination} is inside of {node.path}")
        old = parent.children.get(name)
        if old is node:
            return
        if old is not None and (old.is_dir or node.is_dir):
            raise FileExistsError(destination)
        source_parent, source_name = node.parent, node.name
        if source_parent is None:
            raise PermissionError("the root stays where it is")
        if old is not None:
            old.parent = None
        del source_parent.children[source_name]
        node.parent, node.name = parent, name
        parent.children[name] = node
        source_parent.touch()
        parent.touch()
        cookie = f"{self._dice.getrandbits(128):032x}"
        self._watchers.of("IN_MOVE_SELF", node)
        moves = [("IN_MOVED_FROM", source_parent, source_name), ("IN_MOVED_TO", parent, name)]
        if self.moved_to_first():
            moves.reverse()
        for flag, directory, child in moves:
            self._watchers.tell(flag, directory.pnfs_id, child, cookie, is_dir=node.is_dir)

    def remove(self, node: Node) -> None:
        """Remove a file or an empty directory. OSError when it is not empty."""
        parent = node.parent
        if parent is None:
            raise PermissionError("the root stays where it is")
        if node.children:
            raise OSError(f"{node.path} is not empty")
        del parent.children[node.name]
        node.parent = None
        parent.touch()
        self._watchers.of("IN_DELETE_SELF", node)
        self._watchers.tell("IN_DELETE", parent.pnfs_id, node.name, None, is_dir=node.is_dir)

    def remove_tree(self, node: Node) -> None:
        """Remove a directory with all below it, from the leaves up."""
        for child in list(node.children.values()):
            self.remove_tree(child)
        self.remove(node)

    # --- within ---

    def _place(self, path: str) -> tuple[Node, str]:
        names = _names(path)
        if not names:
            raise IsADirectoryError(path)
        parent = self.lookup("/" + "/".join(names[:-1]))
        if not parent.is_dir:
            raise NotADirectoryError(path)
        return parent, names[-1]

    def _add(self, parent: Node, name: str, *, is_dir: bool) -> Node:
        node = Node(f"0000{self._dice.getrandbits(128):032X}", name, parent, is_dir=is_dir)
        parent.children[name] = node
        parent.touch()
        self._watchers.tell("IN_CREATE", parent.pnfs_id, name, None, is_dir=is_dir)
        return node


def _names(path: str) -> list[str]:
    """The path's parts, with `.`, `..` and doubled slashes resolved as `FsPath.java` does."""
    names: list[str] = []
    for name in path.split("/"):
        if name == "..":
            if names:
                names.pop()
        elif name not in ("", "."):
            names.append(name)
    return names
