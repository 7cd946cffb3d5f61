"""vLLM's own extraction of hidden states as an arm of `benchmarks.throughput_vllm`."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.elsewhere import Elsewhere
from benchmarks.vllm_windows import Asked, Window


class ExtractingArm:
    """vLLM's own extraction, in a process of its own: it changes what all engines of one do.

    Args:
        other: Where it is.
    """

    def __init__(self, other: Elsewhere) -> None:
        self._other = other

    def reset(self) -> None:
        """Empty the prefix cache."""
        self._other.call("reset")

    def ask(self, asked: Sequence[Asked], *, streams: int) -> Window:
        """Answer requests."""
        window: Window = self._other.call("ask", asked, streams=streams)
        return window

    def count(self, asked: Sequence[Asked], *, streams: int) -> tuple[Window, dict[str, int]]:
        """Answer requests, and count what vLLM computes."""
        found: tuple[Window, dict[str, int]] = self._other.call("count", asked, streams=streams)
        return found

    def how_it_runs(self) -> str:
        """Say what had to be changed."""
        said: str = self._other.call("how_it_runs")
        return said

    def close(self) -> None:
        """End the process."""
        self._other.close()


def shared_memory() -> str | None:
    """Return where files are kept in memory, as vLLM advises for states; None if nowhere."""
    return "/dev/shm" if Path("/dev/shm").is_dir() else None
