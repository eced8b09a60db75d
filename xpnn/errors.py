"""The errors that a user can cause. Each message is one line: what was expected, what was received, where."""


class XpnnError(Exception):
    """Base of xpnn's own errors; the command line prints one as a line and exits with status 2."""


class BackendUnavailable(XpnnError, RuntimeError):
    """A backend was asked for that cannot be used on this machine."""


class DataError(XpnnError, ValueError):
    """A data file is missing, damaged, or not what its name says."""


class CheckpointError(XpnnError, ValueError):
    """A checkpoint is damaged, or does not fit the model it is loaded into."""


class OutOfMemory(XpnnError, MemoryError):
    """There is not enough memory for a net, for its data, or for work on a batch of them."""


class SettingError(XpnnError, ValueError):
    """A setting has an unknown name or an impossible value."""
