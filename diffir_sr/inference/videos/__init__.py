"""Restoring videos with PyAV: reading, colour conversion, writing, and resuming."""
