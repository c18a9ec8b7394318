"""Image quality measures as pure functions."""
