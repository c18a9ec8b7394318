"""The quick start: the whole road from photographs to a trained DiffIR, small enough for a laptop's CPU."""
