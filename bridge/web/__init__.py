"""What the bridge says of itself over HTTP, and what it lets be done to who has the token."""

from bridge.web.config import HttpConfig
from bridge.web.server import Problem, serve

__all__ = ["HttpConfig", "Problem", "serve"]
