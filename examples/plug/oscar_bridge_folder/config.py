"""What `type: folder` takes in the configuration."""

from typing import Literal

from bridge.sources import SourceConfig
from bridge.values import Located


class FolderConfig(SourceConfig):
    """Takes the files of a directory, and moves each into its subdirectory `done` when it is settled."""

    type: Literal["folder"]
    path: Located
    """The directory. A file whose name begins with a dot is none yet: write it so, then rename it."""
