"""What the commands of the server need before they can load it."""

from importlib.util import find_spec

from demur.core.errors import MissingPackageError

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "pydantic_settings", "httpx")


def require_server_packages() -> None:
    """Refuse to go on without the packages of the server.

    Raises:
        MissingPackageError: One is not installed; the message says how to.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise MissingPackageError(
            f"the server needs {', '.join(missing)}: pip install 'demur[server]'"
        )
