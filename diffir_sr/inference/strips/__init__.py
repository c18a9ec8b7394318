"""DiffIR's engine: the network is folded for each image, and runs exactly in strips of rows, with planned memory."""
