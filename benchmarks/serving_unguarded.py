"""`demur serve` without a guard, to compare with: the same server, the same engine.

Nothing is read of the prefill, no detector is asked, and no reply is watched. Settings cannot ask
for this, on purpose.

    python -m benchmarks.serving_unguarded --port PORT
"""

import argparse
from collections.abc import Callable
from dataclasses import replace

from demur.core.protocols import never, never_intervene
from demur.core.results import PASS
from demur.core.types import Sampling
from demur.engines.transformers import TransformersEngine
from demur.guard import Guard
from demur.guard.exchange import ChatLike, Exchange
from demur.serving.run import run
from demur.serving.service import Loaded
from demur.serving.settings import Settings, load_settings


class Unguarded(Guard):
    """Opens exchanges that nobody judges. Its detectors are loaded, and left alone."""

    def open(
        self,
        chat: ChatLike,
        sampling: Sampling = Sampling(),  # noqa: B008  # frozen
        *,
        request_id: str = "0",
        draw_id: str | None = None,
        is_abandoned: Callable[[], bool] = never,
        wants_logprobs: bool = True,
    ) -> Exchange:
        """Render a chat and return an exchange without reads, a decision or a monitor."""
        exchange = super().open(
            chat,
            sampling,
            request_id=request_id,
            draw_id=draw_id,
            is_abandoned=is_abandoned,
            wants_logprobs=wants_logprobs,
        )
        if exchange.request is not None:
            exchange.request = replace(
                exchange.request, reads=(), decide=never_intervene, monitor=None
            )
            exchange.route = PASS
        return exchange


def load_unguarded(settings: Settings) -> Loaded:
    """Load the engine as `demur serve` does."""
    engine = TransformersEngine.load(
        settings.model, dtype=settings.dtype, max_batch=settings.limits.max_batch
    )
    return Loaded(Unguarded.load(engine))


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    run(load_settings(None, {"port": parser.parse_args().port}), load=load_unguarded)


if __name__ == "__main__":
    main()
