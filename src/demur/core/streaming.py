"""What it takes to watch a reply while it grows: a detector that scores token by token."""

from demur.core.errors import ConfigError
from demur.core.protocols import Detector, StreamingDetector
from demur.core.reads import CaptureSpec, by_token


def require_streaming(detector: Detector) -> StreamingDetector:
    """Return a detector that can score a reply while it grows, and refuse others.

    Raises:
        ConfigError: It cannot.
    """
    if not isinstance(detector, StreamingDetector):
        raise ConfigError(
            f"{type(detector).__name__} cannot score a reply while it grows: only a "
            "StreamingDetector can watch replies"
        )
    token_read(detector)
    detector.start(0)
    return detector


def token_read(detector: Detector) -> CaptureSpec:
    """Return what a reply detector reads of each token.

    Raises:
        ConfigError: It reads something else, or more.
    """
    if len(detector.reads) != 1:
        raise ConfigError(
            f"{type(detector).__name__} reads {list(detector.reads)}: expected one capture, since "
            "a reply is scored from the states of its newest token"
        )
    return by_token(detector.reads)[0]
