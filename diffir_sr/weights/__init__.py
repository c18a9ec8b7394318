"""Named weights: the registry, the search for files, downloads, backbones; and the shipped models."""
