"""The project: settings, web process, embedded database, set-up, and how errors look."""

__version__ = "0.1.0"
