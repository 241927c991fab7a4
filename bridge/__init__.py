"""OSCAR Event Bridge: takes events from storage and messaging systems and invokes OSCAR services."""

__version__ = "0.1.0"
