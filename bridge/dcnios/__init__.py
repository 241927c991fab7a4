"""From a file of DCNiOS, whatever its layout, to a configuration of the bridge."""

from bridge.dcnios.importing import Imported, import_file
from bridge.dcnios.remarks import What
from bridge.dcnios.saving import save

__all__ = ["Imported", "What", "import_file", "save"]
