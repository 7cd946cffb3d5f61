"""Names the machine and the software of a measurement."""

from demur.workflows.machine import describe_machine

__all__ = ["describe_machine"]
