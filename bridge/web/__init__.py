"""What the bridge says of itself over HTTP: alive, ready, and its metrics."""

from bridge.web.server import HttpConfig, Problem, serve

__all__ = ["HttpConfig", "Problem", "serve"]
