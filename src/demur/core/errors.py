"""The errors that demur raises: each also subclasses the builtin that callers would expect.

A message shows the value, says what was expected and what to do about it.
"""


class DemurError(Exception):
    """Anything that demur itself found wrong."""


class ConfigError(DemurError, ValueError):
    """An option, a name or a combination of them that cannot work."""


class DataError(DemurError, ValueError):
    """Input that cannot be read or scored: a broken line, an empty prompt, a NaN."""


class NotFittedError(DemurError, RuntimeError):
    """A detector was asked for scores before it was fitted."""


class CapabilityError(DemurError, RuntimeError):
    """An engine, detector or responder was asked for what it cannot do."""


class ModelMismatchError(DemurError, ValueError):
    """An artifact met a model that it was not made for."""


class MissingPackageError(DemurError, ImportError):
    """A method needs a package that is not installed; the message holds the command."""
