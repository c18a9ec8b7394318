"""DiffIR in other programs: spandrel (chaiNNer, ComfyUI, ...)."""
