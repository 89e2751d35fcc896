"""A proxy that injects faults between a client and an HTTP server: an object store, a tracking server."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SLOW_SECONDS = 1.5
CODES = {"503": "SlowDown", "501": "NotImplemented", "403": "AccessDenied", "507": "InsufficientStorage"}
HOP_BY_HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "server", "date"}


class Faulty:
    """Does to each request that `matches` (method, path) what comes next in `plan`; then, and else, it only forwards.

    drop     the connection ends before the request is passed on
    lose     the request is passed on, its reply is lost
    cut      half of the reply's content arrives
    slow     the request waits before it is passed on
    ignore   If-None-Match is taken away
    507 ...  this status is answered, nothing is passed on
    forward  nothing
    """

    def __init__(
        self,
        target: str,
        plan: Iterable[str] = (),
        matches: Callable[[str, str], bool] = lambda method, path: method == "PUT",
    ):
        self.plan, self.matches = deque(plan), matches
        self.asked = 0
        """requests that matched"""
        self.done: Counter[str] = Counter()
        """faults injected, by kind"""
        self.headers: dict[str, str] = {}
        """of the latest request"""
        self.away = False
        """refuse everything, as a server that is down"""
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self, target.removeprefix("http://")))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def next(self, method: str, path: str) -> str:
        with self._lock:
            if self.away:
                self.done["away"] += 1
                return "drop"
            if not self.matches(method, path):
                return "forward"
            self.asked += 1
            fault = self.plan.popleft() if self.plan else "forward"
            if fault != "forward":
                self.done[fault] += 1
            return fault

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _handler(faulty: Faulty, target: str) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            faulty.headers = dict(self.headers)
            fault = faulty.next(self.command, self.path)
            if fault == "drop":
                return self.drop()
            if fault.isdigit():
                content = f"<Error><Code>{CODES.get(fault, 'InternalError')}</Code></Error>".encode()
                return self.answer(int(fault), [("Content-Type", "application/xml")], content)
            if fault == "slow":
                time.sleep(SLOW_SECONDS)
            if fault == "ignore":
                del self.headers["If-None-Match"]
            try:
                status, headers, content = self.forward(body)
            except (OSError, http.client.HTTPException):  # the target is away
                return self.drop()
            if fault == "lose":
                return self.drop()
            self.answer(status, headers, content, cut=fault == "cut")

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = do_PATCH = handle_any

        def forward(self, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
            connection = http.client.HTTPConnection(target, timeout=120)
            try:
                connection.request(self.command, self.path, body or None, dict(self.headers))
                reply = connection.getresponse()
                return reply.status, reply.getheaders(), reply.read()
            finally:
                connection.close()

        def answer(self, status: int, headers: list[tuple[str, str]], content: bytes, cut: bool = False) -> None:
            length = len(content)
            if self.command == "HEAD":
                length = int(dict(headers).get("Content-Length", 0))
            self.send_response(status)
            for name, value in headers:
                if name.lower() not in HOP_BY_HOP:
                    self.send_header(name, value)
            if status != 204:
                self.send_header("Content-Length", str(length))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content[: length // 2] if cut else content)
            if cut:
                self.drop()

        def drop(self) -> None:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

        def log_message(self, *_: object) -> None:
            pass

        def handle(self) -> None:
            with contextlib.suppress(OSError):  # the client went away first
                super().handle()

    return Handler
