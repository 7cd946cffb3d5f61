"""A server in a process of its own, on a pretend model that takes its time: for tests that kill it.

python -m tests.serve_fake PORT AUDIT_LOG
"""

import sys

from demur.guard import Guard
from demur.guard.routes import FlaggedTo
from demur.responders.fixed_reply import FixedReply
from demur.serving.run import run
from demur.serving.service import Loaded
from demur.serving.settings import load_settings
from tests.engines import Paced
from tests.guards import planted

TOKEN_S = 0.02
SHUTDOWN_TIMEOUT_S = 10


def main(port: str, audit_path: str) -> None:
    """Serve until a signal comes."""
    given = {
        "port": int(port),
        "audit": {"path": audit_path},
        "limits": {"shutdown_timeout_s": SHUTDOWN_TIMEOUT_S},
    }
    engine = Paced(token_s=TOKEN_S, max_batch=1)
    guard = Guard(
        engine,
        [planted(engine, name="planted")],
        route=FlaggedTo("fixed_reply"),
        responders={"fixed_reply": FixedReply()},
    )
    run(load_settings(None, given, environment={}), load=lambda _: Loaded(guard))


if __name__ == "__main__":
    main(*sys.argv[1:])
