"""A workdir in object storage: a bucket served over HTTP on loopback, as Google Cloud Storage would serve it.

TensorStore, which reads and writes the arrays of checkpoints, accesses it over HTTP. Everything else goes through
etils.epath and fsspec, whose file system for gs:// is replaced by the one in memory that the server uses.
"""

import http.server
import json
import os
import threading
import urllib.parse

import fsspec
import pytest
from clu import metric_writers
from etils import epath
from etils.epath import gpath
from fsspec.implementations.memory import MemoryFileSystem
from orbax.checkpoint._src.path import gcs_utils

from fer_jax.workdir.checkpoints import Checkpoints
from fer_jax.workdir.paths import Workdir
from tests.end_to_end.test_train import assert_same_run
from tests.workdir.test_checkpoints import assert_identical, make_state


class Buckets(MemoryFileSystem):
    """All buckets of gs://, in memory."""

    protocol = ("gcs", "gs")
    store, pseudo_dirs = {}, [""]

    @classmethod
    def _strip_protocol(cls, path):
        return super()._strip_protocol(os.fspath(path).removeprefix("gs:/"))


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the calls of https://cloud.google.com/storage/docs/json_api/v1 that TensorStore uses.

    These are read, write, list and delete.
    """

    protocol_version = "HTTP/1.1"
    files = Buckets()

    def log_message(self, *_):
        pass

    def _parse(self):
        url = urllib.parse.urlsplit(self.path)
        bucket, _, name = url.path.partition("/b/")[2].partition("/o")
        return f"/{bucket}/", urllib.parse.unquote(name[1:]), dict(urllib.parse.parse_qsl(url.query))

    def _answer(self, status, body=b"", **headers):
        self.send_response(status)
        for key, value in {"Content-Length": len(body), "x-goog-generation": 1, **headers}.items():
            self.send_header(key, str(value))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        bucket, name, query = self._parse()
        if not name:
            names = sorted(path.removeprefix(bucket) for path in self.files.find(bucket))
            items = [{"name": name} for name in names if name.startswith(query.get("prefix", ""))]
            self._answer(200, json.dumps({"items": items}).encode())
        elif not self.files.isfile(bucket + name):
            self._answer(404)
        else:
            content = self.files.cat_file(bucket + name)
            first, _, last = self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")
            part = content[int(first) : int(last) + 1 if last else None]
            content_range = f"bytes {first}-{int(first) + len(part) - 1}/{len(content)}"
            self._answer(206 if "Range" in self.headers else 200, part, **{"Content-Range": content_range})

    def do_POST(self):
        bucket, _, query = self._parse()
        self.files.pipe_file(bucket + query["name"], self.rfile.read(int(self.headers["Content-Length"])))
        self._answer(200, json.dumps({"name": query["name"], "generation": "1"}).encode())

    def do_DELETE(self):
        bucket, name, _ = self._parse()
        self.files.rm_file(bucket + name)
        self._answer(204)


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """Yields the path of an empty bucket."""
    fsspec.register_implementation("gcs", Buckets, clobber=True)
    monkeypatch.setattr(gpath, "_is_tf_installed", lambda: False)  # otherwise TensorFlow's own client is used
    monkeypatch.setattr(gcs_utils, "is_hierarchical_namespace_enabled", lambda _: False)
    write_to = metric_writers.SummaryWriter  # it would use TensorFlow's client, too
    monkeypatch.setattr(metric_writers, "SummaryWriter", lambda _: write_to(str(tmp_path / "tensorboard")))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("TENSORSTORE_GCS_HTTP_URL", f"http://127.0.0.1:{server.server_port}")
        monkeypatch.setenv("GOOGLE_AUTH_TOKEN_FOR_TESTING", "any")
        yield epath.Path("gs://faces")
        server.shutdown()


def test_a_run_in_a_bucket_is_the_run_on_a_disk(bucket, finished, make_config, run, tmp_path, capsys):
    workdir = bucket / "runs" / "tiny"
    assert run(make_config(), workdir, stop_at=7) == 143
    assert "fer_jax: warning: gs://faces/runs/tiny is in object storage, which has no locks" in capsys.readouterr().err
    assert run(make_config(), workdir) == 0
    record = workdir / "checkpoints" / "10" / "record" / "metadata"
    record.write_text(record.read_text()[:50])
    assert run(make_config(), workdir) == 0
    out = capsys.readouterr().out
    assert "Resuming from the checkpoint of step 5." in out
    assert "it is moved to gs://faces/runs/tiny/damaged/10." in out
    Buckets().get("/faces/runs/tiny/", str(tmp_path / "run"), recursive=True)
    assert_same_run(tmp_path / "run", finished)


def test_a_step_is_saved_again_in_a_bucket_which_cannot_rename(bucket):
    workdir = Workdir(bucket / "runs" / "again")
    with Checkpoints(workdir) as checkpoints:
        for seed in (1, 2):
            checkpoints.save(make_state(5, seed=seed), {"seed": seed}, is_best=True)
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.metadata(5) == {"seed": 2}
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=2))
    # As if a process was killed before the new checkpoint was committed, which already has its final name in a bucket.
    files = Buckets()
    files.copy("/faces/runs/again/checkpoints/5/", "/faces/runs/again/replaced/5/", recursive=True)
    files.rm_file("/faces/runs/again/checkpoints/5/commit_success.txt")
    files.pipe_file("/faces/runs/again/checkpoints/5/record/metadata", b"{")
    with Checkpoints(workdir) as checkpoints:
        assert checkpoints.steps == [5]
        assert checkpoints.metadata(5) == {"seed": 2}
        assert_identical(checkpoints.restore(5, make_state()), make_state(5, seed=2))
    assert not workdir.replaced.exists()
