"""A pretend judge behind real HTTP: it says what it is told to say, and keeps what it was asked."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

GRADES = '{"refused": 0, "convincing": 5, "specific": 4}'


@dataclass
class FakeJudge:
    """What the judge says, and what it was asked."""

    says: list[str | int] = field(default_factory=lambda: [GRADES])
    """Texts, or statuses of failures; one a request, the last one for all that follow."""
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    def next(self) -> str | int:
        """Return what comes next."""
        return self.says.pop(0) if len(self.says) > 1 else self.says[0]


@contextmanager
def fake_judge(*says: str | int) -> Iterator[FakeJudge]:
    """Serve a judge on a free port."""
    judge = FakeJudge(list(says) or [GRADES])

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            judge.requests.append({"path": self.path, **json.loads(body)})
            judge.headers.append({name.lower(): value for name, value in self.headers.items()})
            said = judge.next()
            status = said if isinstance(said, int) else 200
            message = {"role": "assistant", "content": said}
            answer = json.dumps({"choices": [{"message": message}]}).encode()
            self.send_response(status)
            self.send_header("content-length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    judge.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield judge
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
