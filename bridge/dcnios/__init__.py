"""From a file of DCNiOS, whatever its layout, to a configuration of the bridge."""
