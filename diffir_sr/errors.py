"""Errors caused by input. Every message says what is wrong, where, what was found and what to do."""


class DiffIRError(Exception):
    """Base of all errors raised on purpose; the commands print the message and exit with code 1."""


class OptionError(DiffIRError, ValueError):
    """An option file requests something that does not exist or cannot work."""


class CheckpointError(DiffIRError, ValueError):
    """A weights file is missing, unreadable, or of the wrong kind."""


class InputError(DiffIRError, ValueError):
    """Data (an image, a folder, an LMDB, a tensor) is missing or of the wrong kind."""


class SaveFailed(DiffIRError):  # noqa: N818 - the name appears in logs of trainings
    """A checkpoint or a record of a run could not be written."""
