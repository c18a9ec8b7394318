"""Restoring pictures: one code path for Python, the command, validation and test."""
