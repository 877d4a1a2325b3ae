"""The HTTP side of a classifier, over real connections; the classifier's own tests cover its predictions."""

import concurrent.futures
import contextlib
import http.client
import json
import random
import resource
import socket
import threading

import pytest

from fer_jax.errors import UserError
from fer_jax.faces import server as server_lib


def predict(picture: bytes, explain: str | None, faces: str) -> list[dict]:
    """Returns what arrived; raises UserError for a picture of one byte, and ZeroDivisionError for b"bug"."""
    if len(picture) == 1:
        raise UserError("this is\nno picture")
    if picture == b"bug":
        raise ZeroDivisionError("a bug")
    return [{"bytes": len(picture), "explain": explain, "faces": faces}]


@pytest.fixture(scope="module")
def server():
    with server_lib.Server(("127.0.0.1", 0), predict, ("happy", "sad")) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def ask(
    server, method: str, path: str, body: bytes | None = None, **headers: str
) -> tuple[int, dict, http.client.HTTPResponse]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, json.loads(content) if "json" in answer.headers["Content-Type"] else content, answer


def send(server, request: bytes) -> bytes:
    """Sends bytes as they are and closes the sending side; returns the whole answer."""
    with socket.create_connection(("127.0.0.1", server.server_address[1]), timeout=30) as connection:
        parts = []
        # A server that has refused the request may have closed the connection before all of it was sent.
        with contextlib.suppress(OSError):
            connection.sendall(request)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            while part := connection.recv(65536):
                parts.append(part)
    return b"".join(parts)


def test_the_page_needs_nothing_from_elsewhere(server):
    status, page, answer = ask(server, "GET", "/")
    assert status == 200
    assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert answer.headers["Cache-Control"] == "no-store"
    text = page.decode()
    # The only address in it is the name of SVG's namespace, which is never fetched.
    assert text.count("://") == text.count("http://www.w3.org/2000/svg")
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]


def test_health_says_the_classes(server):
    assert ask(server, "GET", "/healthz")[:2] == (200, {"status": "ok", "classes": ["happy", "sad"]})


def test_a_picture_is_predicted_with_what_was_asked_for(server):
    assert ask(server, "POST", "/predict", b"12345")[:2] == (200, [{"bytes": 5, "explain": None, "faces": "all"}])
    status, found, _ = ask(server, "POST", "/predict?explain=layercam&faces=largest&frame=1", b"12")
    assert (status, found) == (200, [{"bytes": 2, "explain": "layercam", "faces": "largest"}])


def test_one_connection_serves_many_pictures(server):
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=30)
    for length in (3, 4, 5):
        connection.request("POST", "/predict", b"x" * length)
        assert json.loads(connection.getresponse().read())[0]["bytes"] == length
    connection.close()


@pytest.mark.parametrize(
    ("method", "path", "body", "headers", "status", "message"),
    [
        ("GET", "/nothing", None, {}, 404, "there is no /nothing; there are /, /healthz and POST /predict"),
        ("POST", "/", b"12", {}, 404, "there is no POST /; there is /predict"),
        ("POST", "/predict?colour=1", b"12", {}, 400, "there is no option 'colour'; there are explain, faces, frame"),
        ("POST", "/predict", b"1", {}, 400, "this is no picture"),
        ("POST", "/predict", b"bug", {}, 500, "a mistake of ours: ZeroDivisionError: a bug"),
        ("GET", "/", None, {"Host": "127.0.0.1.evil.example"}, 403, "which is not this server"),
        ("GET", "/", None, {"Host": "evil.example:80"}, 403, "Host is 'evil.example:80', which is not this server"),
        (
            "POST",
            "/predict",
            b"12",
            {"Origin": "http://evil.example"},
            403,
            "a page of 'http://evil.example' may not ask",
        ),
        ("POST", "/predict", b"12", {"Content_Length": "two"}, 400, "Content-Length is 'two'"),
        ("POST", "/predict", None, {"Content_Length": "20000001"}, 413, "has 20,000,001 bytes; 20,000,000 are taken"),
        ("POST", "/predict", None, {"Content_Length": "9" * 5000}, 413, "bytes; 20,000,000 are taken at most"),
        ("POST", "/predict", b"12", {"Origin": "http://["}, 403, "a page of 'http://[' may not ask"),
        ("POST", "/predict", None, {"Transfer_Encoding": "chunked"}, 411, "Content-Length is missing"),
        ("DELETE", "/predict", None, {}, 501, "Unsupported method ('DELETE')"),
    ],
)
def test_what_can_not_be_answered_is_a_line_of_json(server, method, path, body, headers, status, message, capsys):
    found, answer, _ = ask(server, method, path, body, **headers)
    assert found == status
    assert message in answer["error"]
    assert "\n" not in answer["error"]
    assert capsys.readouterr().err.count("\n") == (status == 500)


def test_names_of_this_machine_are_taken(server):
    port = server.server_address[1]
    # Other machines in the network reach a server that listens at 0.0.0.0 by an address.
    addresses = (f"127.0.0.1:{port}", f"[::1]:{port}", "192.168.1.7", f"[fe80::1]:{port}")
    for host in ("localhost", f"LOCALHOST:{port}", f"{socket.gethostname()}:{port}", *addresses):
        assert ask(server, "GET", "/healthz", Host=host)[0] == 200
    assert ask(server, "POST", "/predict", b"12", Host=f"localhost:{port}", Origin=f"http://localhost:{port}")[0] == 200


def test_an_address_of_ipv6_is_listened_at():
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            pass
    except OSError:
        pytest.skip("this machine has no IPv6")
    with server_lib.Server(("::1", 0), predict, ()) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        assert server.url == f"http://[::1]:{server.server_address[1]}/"
        connection = http.client.HTTPConnection("::1", server.server_address[1], timeout=30)
        connection.request("POST", "/predict", b"12")
        assert json.load(connection.getresponse())[0]["bytes"] == 2
        connection.close()
        server.shutdown()


def test_a_picture_that_ends_early_is_said(server):
    answer = send(server, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n12345")
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"the picture ended after 5 of 10 bytes" in answer


def test_a_body_that_is_too_large_is_refused_before_it_is_read(server):
    # Nothing of it is sent: who waited for it would wait for ever.
    answer = send(server, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99999999999\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")


def test_a_frame_is_dropped_while_another_picture_is_worked_on_and_a_picture_waits():
    may_end, has_begun = threading.Event(), threading.Event()

    def slow(picture, explain, faces):
        has_begun.set()
        may_end.wait(30)
        return []

    with (
        server_lib.Server(("127.0.0.1", 0), slow, ()) as server,
        concurrent.futures.ThreadPoolExecutor() as executor,
    ):
        executor.submit(server.serve_forever)
        first = executor.submit(ask, server, "POST", "/predict", b"12")
        assert has_begun.wait(30)
        waiting = executor.submit(ask, server, "POST", "/predict", b"12")
        assert ask(server, "POST", "/predict?frame=1", b"12")[0] == 503
        may_end.set()
        assert first.result()[0] == waiting.result()[0] == 200
        server.shutdown()


def test_a_ninth_body_is_read_when_one_of_eight_is_done_with():
    start = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n1234"
    with (
        server_lib.Server(("127.0.0.1", 0), predict, ()) as server,
        concurrent.futures.ThreadPoolExecutor() as executor,
        contextlib.ExitStack() as stalled,
    ):
        executor.submit(server.serve_forever)
        clients = [stalled.enter_context(socket.create_connection(server.server_address)) for _ in range(8)]
        for client in clients:
            client.sendall(start)
        # Until all eight are being read, further bodies are taken.
        while server.bodies.acquire(blocking=False):
            server.bodies.release()
        ninth = executor.submit(ask, server, "POST", "/predict", b"12")
        assert not concurrent.futures.wait([ninth], 0.5).done
        clients[0].sendall(b"5")
        assert ninth.result()[0] == 200
        server.shutdown()


def test_of_fifty_requests_at_once_none_is_lost(server):
    with concurrent.futures.ThreadPoolExecutor(50) as executor:
        found = list(executor.map(lambda length: ask(server, "POST", "/predict", b"x" * length), range(2, 52)))
    assert [answer[0]["bytes"] for _, answer, _ in found] == list(range(2, 52))


def test_memory_stays_the_same_over_two_thousand_requests(server):
    def many(number: int) -> None:
        with concurrent.futures.ThreadPoolExecutor(4) as executor:
            list(executor.map(lambda _: ask(server, "POST", "/predict", b"x" * 100_000), range(number)))

    many(200)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    many(1800)
    # In kB. The bodies alone would take 180 MB if they were kept.
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20_000


def test_a_thousand_malformed_requests_do_not_end_it(server):
    generator = random.Random(0)
    whole = b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n\r\n12345"
    for number in range(1000):
        request = bytearray(whole)
        for _ in range(generator.randint(1, 8)):
            place = generator.randrange(len(request))
            if generator.random() < 0.5:
                request[place] = generator.randrange(256)
            else:
                del request[place : place + generator.randint(1, 9)]
                request = request or bytearray(b"\r\n")
        if number % 10 == 0:
            request = bytes(generator.randbytes(generator.randint(1, 2000)))
        if number % 250 == 0:
            request = b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\n\r\n"
        answer = send(server, bytes(request))
        assert b"Traceback" not in answer
    assert ask(server, "POST", "/predict", b"12345")[0] == 200
