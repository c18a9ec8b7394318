"""What can go wrong through the caller's doing. Every message says what, where, what was found and what to do."""


class DiffIRError(Exception):
    """Base of every error that this package raises on purpose; the commands print it as one message and exit with 1."""


class OptionError(DiffIRError, ValueError):
    """An option file asks for something that does not exist or cannot work."""


class CheckpointError(DiffIRError, ValueError):
    """A weights file is missing, unreadable, or not what its place needs."""


class InputError(DiffIRError, ValueError):
    """Data (an image, a folder, an LMDB, a tensor) is missing or not what is needed."""


class SaveFailed(DiffIRError):  # noqa: N818 - the name that a training's log has had
    """A checkpoint or a record of a run could not be written."""
