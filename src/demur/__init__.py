"""demur guards open-weight chat models by reading what they already know."""

from importlib.metadata import version

__version__ = version("demur")
