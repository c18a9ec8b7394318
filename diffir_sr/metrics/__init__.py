"""Image quality metrics as pure functions."""
