"""Jobs that prepare data: each first makes a plan (a pure function), then runs it with progress and atomic writes."""
