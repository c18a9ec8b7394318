"""The quick start: from photographs to a trained DiffIR, small enough for the CPU of a laptop."""
