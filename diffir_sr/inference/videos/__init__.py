"""Restoring videos through PyAV: reading, colours, writing, and going on where a run ended."""
