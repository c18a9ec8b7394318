"""DiffIR's engine: the network folded for each picture, restored exactly in strips of rows, in planned memory."""
