"""Serves a classifier over HTTP with the standard library: a page for people, JSON for programs. Nothing is stored.

GET  /         the page
GET  /healthz  {"status": "ok", "classes": [...]}
POST /predict  the bytes of a picture -> the list that `Classifier` returns for it, as JSON. ?explain=METHOD adds
               to each face a picture of what counted, as a data URL; ?faces=all|largest|none; ?frame=1 says that the
               picture is one of a stream, which is dropped (status 503) while another one is being processed.

Every error is {"error": "one line"}.
"""

import contextlib
import http.server
import importlib.resources
import ipaddress
import json
import socket
import sys
import threading
import urllib.parse
from collections.abc import Callable
from http import HTTPStatus

from fer_jax.errors import UserError

# A photograph from a phone has 5 to 10 MB.
MAX_BODY = 20_000_000
# Seconds after which a silent connection is closed. A client sending a byte a minute would keep a thread forever.
_PATIENCE = 30
# Bodies in memory at a time. Each client sends one, and there may be any number of clients.
_MAX_BODIES = 8
_QUERY = {"explain": None, "faces": "all", "frame": "0"}


class Refused(Exception):
    """Refuses a request with an HTTP status and a one-line message."""

    def __init__(self, status: HTTPStatus, message: str):
        super().__init__(message)
        self.status = status


class Server(http.server.ThreadingHTTPServer):
    """Answers requests, one picture at a time.

    Args of the constructor:
      address: (host, port) to listen on; port 0 for any free port.
      predict: (bytes of a picture, explain method or None, 'all', 'largest' or 'none') -> a JSON-serialisable value.
        Raises UserError if the bytes can't be used.
      class_names: reported by /healthz.
    """

    daemon_threads = True
    # With the default of 5, a burst of clients is refused.
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], predict: Callable, class_names: tuple[str, ...]):
        self.predict, self.class_names = predict, class_names
        # Processing two pictures at once would be no faster and take twice the memory.
        self.lock = threading.Lock()
        self.bodies = threading.BoundedSemaphore(_MAX_BODIES)
        self.page = importlib.resources.files("fer_jax").joinpath("page", "index.html").read_bytes()
        # Set before the constructor makes the socket, which has one address family.
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)
        self._names = {"localhost", address[0].lower(), socket.gethostname().lower()}

    @property
    def url(self) -> str:
        """The address of the page."""
        host, port = self.server_address[:2]
        if ":" in host:
            host = f"[{host}]"
        return f"http://{'localhost' if host == '127.0.0.1' else host}:{port}/"

    def is_called(self, name: str) -> bool:
        """Returns whether a request for the host `name` is for this server.

        Any IP address is accepted. A foreign page that makes its own host name resolve to this server in order to read
        the answers (DNS rebinding) sends that name, which is not accepted.
        """
        if name.lower() in self._names:
            return True
        with contextlib.suppress(ValueError):
            ipaddress.ip_address(name.removeprefix("[").removesuffix("]"))
            return True
        return False

    def handle_error(self, request, client_address):
        # A client that disconnects before the answer is no error; all other errors are answered in _Handler.
        pass


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "fer_jax", ""
    timeout = _PATIENCE

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def _get(self) -> tuple[str, bytes]:
        path = urllib.parse.urlsplit(self.path).path
        if path == "/":
            return "text/html; charset=utf-8", self.server.page
        if path == "/healthz":
            return _json({"status": "ok", "classes": list(self.server.class_names)})
        raise Refused(HTTPStatus.NOT_FOUND, f"there is no {path[:100]}; there are /, /healthz and POST /predict")

    def _post(self) -> tuple[str, bytes]:
        parts = urllib.parse.urlsplit(self.path)
        if parts.path != "/predict":
            raise Refused(HTTPStatus.NOT_FOUND, f"there is no POST {parts.path[:100]}; there is /predict")
        query = _QUERY | dict(urllib.parse.parse_qsl(parts.query))
        if unknown := sorted(query.keys() - _QUERY.keys()):
            raise Refused(
                HTTPStatus.BAD_REQUEST, f"there is no option {unknown[0][:50]!r}; there are {', '.join(_QUERY)}"
            )
        with self.server.bodies:
            picture = self._body()
            is_mine = self.server.lock.acquire(blocking=query["frame"] != "1")
            if not is_mine:
                raise Refused(HTTPStatus.SERVICE_UNAVAILABLE, "busy with another picture; this frame is dropped")
            try:
                return _json(self.server.predict(picture, query["explain"], query["faces"]))
            finally:
                self.server.lock.release()

    def _body(self) -> bytes:
        if "Transfer-Encoding" in self.headers or "Content-Length" not in self.headers:
            raise Refused(HTTPStatus.LENGTH_REQUIRED, "Content-Length is missing: the number of bytes of the picture")
        text = self.headers["Content-Length"]
        if not text.isascii() or not text.isdigit():
            raise Refused(HTTPStatus.BAD_REQUEST, f"Content-Length is {text[:50]!r}; it must be a number of bytes")
        # Twenty digits are too many in any case, and thousands of them are more than int() takes.
        length = int(text.lstrip("0")[:20] or 0)
        # Checked before the body is read, so that no client can exhaust the memory.
        if length > MAX_BODY:
            raise Refused(
                HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                f"the picture has {length:,} bytes; {MAX_BODY:,} are taken at most",
            )
        body = self.rfile.read(length)
        if len(body) < length:
            raise Refused(HTTPStatus.BAD_REQUEST, f"the picture ended after {len(body):,} of {length:,} bytes")
        return body

    def _answer(self, make: Callable[[], tuple[str, bytes]]) -> None:
        """Sends the result of `make`, or its error as JSON."""
        try:
            self._check_sender()
            content_type, content = make()
            status = HTTPStatus.OK
        except Refused as refused:
            status, (content_type, content) = refused.status, _json({"error": str(refused)})
        except UserError as error:
            status, (content_type, content) = HTTPStatus.BAD_REQUEST, _json({"error": " ".join(str(error).split())})
        except OSError:
            # The connection is closed or silent, so no answer can be sent.
            self.close_connection = True
            return
        except Exception as error:
            print(f"fer_jax: {type(error).__name__}: {error}", file=sys.stderr)
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            content_type, content = _json({"error": f"a mistake of ours: {type(error).__name__}: {error}"})
        self._send(status, content_type, content)

    def _check_sender(self) -> None:
        host = self.headers.get("Host", "")
        name = host.rpartition(":")[0] if host.rpartition(":")[2].isdigit() else host
        if not self.server.is_called(name):
            raise Refused(HTTPStatus.FORBIDDEN, f"Host is {host[:100]!r}, which is not this server")
        # Any page that is open in the browser can send a request here; only this server's own page is answered.
        origin = self.headers.get("Origin")
        if origin and origin.partition("://")[2].lower() != host.lower():
            raise Refused(HTTPStatus.FORBIDDEN, f"a page of {origin[:100]!r} may not ask this server")

    def _send(self, status: HTTPStatus, content_type: str, content: bytes) -> None:
        # An unread body would be parsed as the next request.
        self.close_connection = self.close_connection or status != HTTPStatus.OK
        with contextlib.suppress(OSError):
            self.send_response(status)
            headers = {
                "Content-Type": content_type,
                "Content-Length": str(len(content)),
                "Cache-Control": "no-store",
                "X-Content-Type-Options": "nosniff",
                "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' blob: data:",
            } | ({"Connection": "close"} if self.close_connection else {})
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    def send_error(self, code, message=None, explain=None) -> None:
        """Sends the errors of http.server itself, as for a request of 100,000 characters, as JSON too."""
        status = HTTPStatus(code)
        self.close_connection = True
        # The command isn't set if the request line can't be parsed.
        self.command = getattr(self, "command", None) or "GET"
        self.request_version = getattr(self, "request_version", self.protocol_version) or self.protocol_version
        self._send(status, *_json({"error": f"{message or status.phrase}"[:200]}))

    def log_message(self, format, *args) -> None:
        # A line for each frame of a webcam, or for each connection that a browser keeps, would hide what matters.
        pass


def _json(value) -> tuple[str, bytes]:
    return "application/json", json.dumps(value, allow_nan=False).encode()
