"""Trouble that strikes at once: to connections, channels and watches. What waits is in `faults`."""

from __future__ import annotations

from bridge.sandbox.dcache.channel import Channel
from bridge.sandbox.dcache.inotify import Inotify
from bridge.sandbox.dcache.streams import Streams


class Trouble:
    """What can go wrong with all clients of the site at a moment of one's choice."""

    def __init__(self, channels: dict[str, Channel], inotify: Inotify, streams: Streams) -> None:
        self._channels = channels
        self._inotify = inotify
        self._streams = streams

    def drop_streams(self) -> None:
        """Reset the connections of all event streams; channels stay. See also `faults.drop_after`."""
        for stream in self._streams:
            stream.abort()

    def stall(self) -> None:
        """Write nothing more to the streams open now, and keep their connections. New ones are served."""
        for stream in self._streams:
            stream.stall(stalled=True)

    def resume(self) -> None:
        """Let the stalled streams that are still open go on, beginning with what they missed."""
        for stream in self._streams:
            stream.stall(stalled=False)

    def lose_events(self) -> None:
        """Empty all rings: whoever returns with a `Last-Event-ID` is told EVENT_LOSS."""
        for channel in self._channels.values():
            channel.forget_events()

    def begin_overflow(self, path: str | None = None) -> None:
        """From now on the watches on that path, or all there are, lose their events.

        `Inotify.java` keeps 1,000 events a watch, `EventNotifier.java` some for the whole frontend.
        """
        for watch in self._inotify.watches(path):
            watch.overflowing = True

    def end_overflow(self) -> None:
        """Tell IN_Q_OVERFLOW on the watches that lost events; they are told again from here on."""
        for watch in self._inotify.watches():
            if watch.overflowing:
                watch.overflowed()

    def forget_channels(self) -> None:
        """End all channels as if their time had come: 404 from now on, and streams end."""
        for channel in list(self._channels.values()):
            channel.close()

    def restart(self, *, shutdown: bool = True) -> None:
        """Start the frontend again: all channels are gone, the files are not.

        With `shutdown` the streams end with SHUTDOWN (`Registrar.beforeStop`), else they are reset.
        """
        for channel in self._channels.values():
            if shutdown:
                channel.system("SHUTDOWN")
        for stream in self._streams:
            if shutdown:
                stream.cut()
            else:
                stream.abort()
        self.forget_channels()
