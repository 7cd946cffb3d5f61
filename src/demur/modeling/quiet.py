"""Keeps transformers' progress bars and warnings out of the user's terminal while it loads."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO

from transformers import logging as transformers_logging


@contextmanager
def quiet() -> Iterator[None]:
    """Hide progress bars and warnings; transformers' own setting is restored."""
    was_enabled = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        # The bar over GGUF tensors knows no switch: it writes to standard error whatever is set.
        with warnings.catch_warnings(), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        if was_enabled:
            transformers_logging.enable_progress_bar()
