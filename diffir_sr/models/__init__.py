"""BasicSR models: the three stages of DiffIR training, and what they share."""
