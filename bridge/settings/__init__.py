"""The configuration: a YAML file and the environment become typed models, or mistakes with their places."""

from bridge.settings.loading import load
from bridge.settings.models import Cluster, LogConfig, Service, Settings

__all__ = ["Cluster", "LogConfig", "Service", "Settings", "load"]
