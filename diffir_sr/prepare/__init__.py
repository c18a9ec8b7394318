"""Jobs that make data: each plans first (pure), then runs with progress, whole files or none."""
