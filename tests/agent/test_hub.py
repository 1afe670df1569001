from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from agent.contract.protocol import Fetch, Fetched
from agent.system.worker_client import NETWORK, Worker

pytestmark = pytest.mark.process

COMMIT = "a" * 40
FILES = {
    "config.json": b'{"model_type": "llama"}',
    "tokenizer.json": b"{}",
    "model.safetensors": b"weights",
    "pytorch_model.bin": b"a pickle",
    "modeling_custom.py": b"raise SystemExit",
}


class Hub(BaseHTTPRequestHandler):
    """As much of a model hub's HTTP as a download asks for; `asked` remembers the paths."""

    asked: list[str]

    def do_HEAD(self) -> None:
        """Headers alone."""
        self._answer(body=False)

    def do_GET(self) -> None:
        """Headers and content."""
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        self.asked.append(self.path)
        path = self.path.partition("?")[0]
        if "/tree/" in path:
            content = json.dumps(
                [{"type": "file", "path": n, "size": len(b), "oid": COMMIT} for n, b in FILES.items()]
            ).encode()
        elif path.startswith("/api/models/org/tiny"):
            siblings = [{"rfilename": name} for name in FILES]
            content = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
        else:
            content = FILES.get(path.rpartition("/")[2], b"")
        self.send_response(200 if content else 404)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[type[Hub]]:
    """A hub on a loopback port that HF_ENDPOINT names."""
    handler = type("OneHub", (Hub,), {"asked": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    yield handler
    server.shutdown()
    server.server_close()


def test_a_hub_id_brings_weights_and_tokenizer_but_no_pickle_and_no_code(hub: type[Hub], tmp_path: Path) -> None:
    """Real HTTP to a hub on loopback, by the process that `init` starts; what is unsafe is not even asked for."""
    target = tmp_path / "target"
    target.mkdir()
    with Worker("agent.versions.fetch", tmp_path / "log", more=NETWORK) as worker:
        fetched = worker.ask(Fetch("org/tiny", str(target)))
    assert isinstance(fetched, Fetched)
    found = {path.name: path.read_bytes() for path in Path(fetched.path).iterdir() if path.is_file()}
    assert found == {name: FILES[name] for name in ("config.json", "tokenizer.json", "model.safetensors")}
    assert not [path for path in hub.asked if path.endswith((".bin", ".py"))]
