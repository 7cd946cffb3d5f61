"""Serve the guarded model on a Ray cluster; replicas come and go with the requests under way.

Each replica is demur's own server, with the model and the guard in it, and takes no request before
its self-test has passed. An audit log is a file a replica: a chain of hashes has one writer.

    python examples/ray_serve.py [guard.toml]
"""

import sys
from pathlib import Path

from ray import serve
from ray.serve import Application
from starlette.types import ASGIApp

from demur.core.errors import ModelMismatchError
from demur.serving.app import create_app
from demur.serving.service import LOADING, load_guard
from demur.serving.settings import Settings, load_settings


@serve.ingress()
class GuardedModel:
    """One replica."""

    def __init__(self, settings: Settings) -> None:
        self._settings = _with_own_log(settings, serve.get_replica_context().replica_id.unique_id)
        self._loaded = load_guard(self._settings)
        if self._loaded.problem is not None:
            raise ModelMismatchError(self._loaded.problem)

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application, for Ray."""
        self._app = create_app(self._settings, load=lambda _: self._loaded)
        return self._app

    def check_health(self) -> None:
        """Let Ray replace a replica whose engine has ended."""
        problem = self._app.state.service.problem
        if problem not in (None, LOADING):
            raise RuntimeError(problem)


def guarded_model(
    settings: Settings,
    *,
    min_replicas: int = 1,
    max_replicas: int = 4,
    upscale_delay_s: float = 10.0,
    num_cpus: float = 1,
) -> Application:
    """Return what `serve.run` runs.

    Args:
        settings: Of each replica's server; Ray alone listens, so host and port are not used.
        min_replicas: Kept when there is nothing to do.
        max_replicas: Started at most.
        upscale_delay_s: Of more requests than replicas can batch, until one is added, in seconds.
        num_cpus: Of each replica, which are its threads, too.
    """
    limits = settings.limits
    deployment = serve.deployment(
        GuardedModel,
        name="demur",
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": limits.max_batch,
            "upscale_delay_s": upscale_delay_s,
        },
        max_ongoing_requests=limits.max_batch + limits.max_waiting,
        ray_actor_options={"num_cpus": num_cpus},
    )
    return deployment.bind(settings)


def _with_own_log(settings: Settings, replica: str) -> Settings:
    path = settings.audit.path
    if path is None:
        return settings
    own = path.with_stem(f"{path.stem}-{replica}")
    audit = settings.audit.model_copy(update={"path": own})
    return settings.model_copy(update={"audit": audit})


if __name__ == "__main__":
    config = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    served = load_settings(config, {})
    serve.start(http_options={"host": served.host, "port": served.port})
    serve.run(guarded_model(served), name="demur", blocking=True)
