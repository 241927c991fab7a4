"""What the outside sees of the bridge: log lines, metrics."""
