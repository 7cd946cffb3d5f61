"""Where the files of source repositories come from: the web, or checkouts on this machine."""

import http.client
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import quote

from demur.core.errors import ConfigError, DataError
from demur.core.folders import write_synced
from demur.datasets.recipes.recipes import Source

TIMEOUT_S = 60.0
PAUSE_S = 2.0
"""Before the second try; twice as long before the third."""
NUM_TRIES = 3
GONE = {400, 401, 403, 404, 410, 451}
"""HTTP status codes that another try would not change."""


class MissingFileError(DataError):
    """A repository does not hold a file."""


class Sources(Protocol):
    """Gives the files of repositories."""

    def read(self, source: Source, path: str) -> bytes:
        """Return a file's content.

        Raises:
            MissingFileError: The repository has no such file.
            ConfigError: The repository cannot be reached.
        """


def folder_of(source: Source) -> str:
    """Return the name of the folder that stands for a repository."""
    return source.repo.replace("/", "__")


@dataclass(frozen=True)
class Checkouts:
    """Folders `OWNER__NAME`, each a repository at its pinned commit."""

    folder: Path

    def read(self, source: Source, path: str) -> bytes:
        """Return a file's content."""
        found = self.folder / folder_of(source) / path
        if not found.is_file():
            raise MissingFileError(
                f"there is no file {found}: check out {source.repo} at {source.commit} there"
            )
        return found.read_bytes()


def fetch(url: str) -> bytes:
    """Return what lies at an address.

    Raises:
        OSError: There is no answer, or not the whole one.
    """
    with urllib.request.urlopen(url, timeout=TIMEOUT_S) as answer:
        content: bytes = answer.read()
    return content


@dataclass(frozen=True)
class Web:
    """GitHub, with what was fetched kept in a folder, so that a later run goes on."""

    cache: Path
    get: Callable[[str], bytes] = fetch

    def read(self, source: Source, path: str) -> bytes:
        """Return a file's content."""
        kept = self.cache / f"{folder_of(source)}@{source.commit[:12]}" / path
        if kept.is_file():
            return kept.read_bytes()
        commit = f"{source.repo}/{source.commit}"
        content = self._get(f"https://raw.githubusercontent.com/{commit}/{quote(path)}")
        kept.parent.mkdir(parents=True, exist_ok=True)
        replace_file(kept, content)
        return content

    def _get(self, url: str) -> bytes:
        for attempt in range(NUM_TRIES):
            time.sleep(PAUSE_S * attempt)
            try:
                return self.get(url)
            except urllib.error.HTTPError as error:
                error.close()
                if error.code in GONE:
                    raise MissingFileError(f"{url} answers {error.code}") from None
                reason = str(error)
            except (OSError, http.client.HTTPException) as error:
                reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise ConfigError(
            f"cannot fetch {url} ({reason}): check the network, or give checkouts of the "
            "repositories with --from FOLDER"
        )


def replace_file(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    partial = path.with_name(f"{path.name}.partial")
    write_synced(partial, content)
    partial.replace(path)
