"""The run around a model: options to folders, loaders, the loop, resuming, testing."""
