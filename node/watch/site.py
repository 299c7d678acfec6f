"""/metrics, /healthz and /readyz over HTTP, for machines: plain text, nothing about a patient."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterable
from contextlib import closing
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from socketserver import TCPServer
from types import TracebackType
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler

import structlog
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import ThreadingWSGIServer, make_wsgi_app

from config.settings import WatchSettings
from node.flow import Failure, attempt

log = structlog.get_logger(__name__)

SILENCE_S: Final = 10.0
"""Seconds a client may be silent."""
MOST_READ: Final = 65_536
"""Bytes of a page that are of use to whoever asks."""
MOST_CLIENTS: Final = 16
"""Clients that are answered at once; one more is hung up on."""

Problems = Callable[[], list[str]]
Page = Callable[[Any, Any], Iterable[bytes]]


class Site:
    """Answers within a ``with`` statement; entering raises OSError where the address cannot be had."""

    def __init__(
        self, watch: WatchSettings, registry: CollectorRegistry, *, health: Problems, readiness: Problems
    ) -> None:
        self._watch = watch
        self._pages: dict[str, Page] = {
            "/metrics": make_wsgi_app(registry),
            "/healthz": page_of(health),
            "/readyz": page_of(readiness),
        }
        self._server: Server | None = None

    def __enter__(self) -> Site:
        self._server = Server(self._watch.host, self._watch.port, self._answer)
        threading.Thread(target=self._server.serve_forever, args=(0.2,), name="site", daemon=True).start()
        log.info("figures are served", port=self.port)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    @property
    def port(self) -> int:
        """The TCP port; raises RuntimeError where nothing is served."""
        if self._server is None:
            raise RuntimeError("nothing is served")
        return int(self._server.server_port)

    def _answer(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        """A page, or 500: what went wrong is one line of the log, without the error's words."""
        page = self._pages.get(environ["PATH_INFO"], nothing_here)
        answer = attempt(lambda: page(environ, start_response))
        if not isinstance(answer, Failure):
            return answer
        log.error("page failed", trace=answer.trace)
        return respond(start_response, HTTPStatus.INTERNAL_SERVER_ERROR, "it failed: the log says where")


def page_of(problems: Problems) -> Page:
    """200 and ``ok``, or 503 and a problem a line."""

    def answer(_environ: Any, start_response: Any) -> Iterable[bytes]:
        found = problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if found else HTTPStatus.OK
        return respond(start_response, status, "\n".join(found or ["ok"]))

    return answer


def nothing_here(_environ: Any, start_response: Any) -> Iterable[bytes]:
    """404, and what there is."""
    return respond(start_response, HTTPStatus.NOT_FOUND, "there are /metrics, /healthz and /readyz")


def respond(start_response: Any, status: HTTPStatus, text: str) -> Iterable[bytes]:
    """A page of plain text."""
    headers = [("Content-Type", "text/plain; charset=utf-8"), ("Cache-Control", "no-store")]
    start_response(f"{status.value} {status.phrase}", headers)
    return [f"{text}\n".encode()]


class Handler(WSGIRequestHandler):
    """One client; it may not be silent for long, and nothing of it is logged."""

    timeout = SILENCE_S

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: requests come every few seconds."""


class Server(ThreadingWSGIServer):
    """A thread a client, few clients."""

    def __init__(self, host: str, port: int, app: Page) -> None:
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._places = threading.BoundedSemaphore(MOST_CLIENTS)
        super().__init__((host, port), Handler)
        self.set_app(app)

    def server_bind(self) -> None:
        """Take the address, without the search for its name in the DNS that wsgiref makes."""
        TCPServer.server_bind(self)
        self.server_name, self.server_port = self.server_address[:2]  # type: ignore[assignment]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, or hang up where too many are answered already."""
        if not self._places.acquire(blocking=False):
            self.shutdown_request(request)
            return
        super().process_request(request, client_address)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Answer, and make room for the next."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that broke off is no news."""


def ask(watch: WatchSettings, page: str, timeout_s: float = 10.0) -> tuple[int, str]:
    """What a page says: its status, and its text as far as it is of use; 0 for what is no HTTP.

    Raises ConnectionRefusedError where nobody listens, OSError for anything else that fails.
    """
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(watch.host, watch.host)
    asking = HTTPConnection(host, watch.port, timeout=timeout_s)
    with closing(asking):
        asking.request("GET", page)
        try:
            answer = asking.getresponse()
            return answer.status, answer.read(MOST_READ).decode("utf-8", "replace")
        except HTTPException:
            return 0, ""
