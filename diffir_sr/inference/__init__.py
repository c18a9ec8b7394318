"""Restoring images and videos: one code path for Python, the command line, validation and testing."""
