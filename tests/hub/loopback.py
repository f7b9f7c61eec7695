"""A local server with the part of the Hub's interface that this package uses, which records what arrives.

Tests use the real client of `huggingface_hub` with it.
"""

import base64
import hashlib
import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard

DROP = "drop"
"""In place of a status: the connection is closed without a response."""


@dataclass
class Repository:
    """A repository on the server."""

    private: bool
    files: dict[str, bytes] = field(default_factory=dict)
    commits: int = 0

    @property
    def head(self) -> str:
        return f"{self.commits:040x}"


@dataclass
class Hub:
    """State of the server: repositories by type and name, requests, and failures that it still has to simulate."""

    endpoint: str = ""
    repositories: dict[tuple[str, str], Repository] = field(default_factory=dict)
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    failures: list[tuple[str, int | str]] = field(default_factory=list)
    large: dict[str, bytes] = field(default_factory=dict)
    lock: Any = field(default_factory=Lock)

    def fail(self, pattern: str, *outcomes: int | str) -> None:
        """Answer the next requests whose method and path match with these statuses, or `DROP` the connection."""
        self.failures += [(pattern, outcome) for outcome in outcomes]

    def add(self, name: str, files: dict[str, bytes], *, kind: str = "model") -> Repository:
        found = self.repositories[kind, name] = Repository(False, dict(files), 1)
        return found

    def files(self, name: str, *, kind: str = "model") -> dict[str, bytes]:
        return self.repositories[kind, name].files

    @property
    def received(self) -> bytes:
        """All contents that arrived."""
        return b"".join(content for each in self.repositories.values() for content in each.files.values())


class Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._handle()

    do_HEAD = do_POST = do_PUT = do_GET

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        with self.hub.lock:
            self.hub.requests.append((self.command, path, self.headers.get("Authorization")))
            for index, (pattern, outcome) in enumerate(self.hub.failures):
                if re.search(pattern, f"{self.command} {path}"):
                    del self.hub.failures[index]
                    self._fail(outcome)
                    return
            self._answer(path, body)

    def _fail(self, outcome: int | str) -> None:
        if outcome == DROP:
            self.close_connection = True
            self.connection.close()
            return
        self._send(int(outcome), {"error": "refused by the test"})

    def _answer(self, path: str, body: bytes) -> None:
        for pattern, answer in ANSWERS.items():
            found = re.fullmatch(pattern, path)
            if found:
                answer(self, body, *found.groups())
                return
        self._send(404, {"error": f"{path} is not part of the test"})

    def _send(self, status: int, content: Any = None, headers: dict[str, str] | None = None) -> None:
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def _repository(self, kind: str, name: str) -> Repository | None:
        found = self.hub.repositories.get((kind.rstrip("s"), name))
        if found is None:
            self._send(404, {"error": "no such repository"}, {"X-Error-Code": "RepoNotFound"})
        return found

    def create(self, body: bytes) -> None:
        asked = json.loads(body)
        name, kind = f"{asked.get('organization') or 'me'}/{asked['name']}", asked.get("type") or "model"
        prefix = "datasets/" if kind == "dataset" else ""
        exists = (kind, name) in self.hub.repositories
        if not exists:
            self.hub.repositories[kind, name] = Repository(asked.get("visibility") == "private")
        self._send(409 if exists else 200, {"url": f"{self.hub.endpoint}/{prefix}{name}", "name": name})

    def whoami(self, body: bytes) -> None:
        self._send(200, {"name": "me", "type": "user", "orgs": [], "auth": {"type": "access_token"}})

    def validate(self, body: bytes) -> None:
        self._send(200, {"errors": [], "warnings": []})

    def tree(self, body: bytes, kind: str, name: str, revision: str) -> None:
        if repository := self._repository(kind, name):
            rows = [{"type": "file", "path": path, "oid": _digest(content), "size": len(content)}
                    for path, content in repository.files.items()]  # fmt: skip
            self._send(200, rows)

    def info(self, body: bytes, kind: str, name: str, revision: str | None) -> None:
        if repository := self._repository(kind, name):
            if revision not in (None, "main", repository.head):
                self._send(404, {"error": "no such revision"}, {"X-Error-Code": "RevisionNotFound"})
                return
            card = ModelCard(repository.files.get("README.md", b"").decode()).data.to_dict()
            found = {"id": name, "sha": repository.head, "siblings": [], "private": repository.private}
            self._send(200, {**found, "cardData": card})

    def preupload(self, body: bytes, kind: str, name: str, revision: str) -> None:
        rows = [
            {"path": row["path"], "shouldIgnore": False,
             "uploadMode": "lfs" if row["path"].endswith((".safetensors", ".parquet")) else "regular"}
            for row in json.loads(body)["files"]
        ]  # fmt: skip
        self._send(200, {"files": rows})

    def batch(self, body: bytes, name: str) -> None:
        objects = [
            {**row, "actions": {"upload": {"href": f"{self.hub.endpoint}/large/{row['oid']}"}}}
            for row in json.loads(body)["objects"]
        ]
        self._send(200, {"transfer": "basic", "objects": objects})

    def put(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.large[oid] = body
        self._send(200, {})

    def branch(self, body: bytes, kind: str, name: str, revision: str) -> None:
        self._send(200, {})

    def commit(self, body: bytes, kind: str, name: str, revision: str) -> None:
        repository = self._repository(kind, name)
        if repository is None:
            return
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repository.head):
            self._send(412, {"error": "the repository has changed"})
            return
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1
        self._send(200, {"commitUrl": f"{self.hub.endpoint}/{name}/commit/1", "commitOid": repository.head})

    def resolve(self, body: bytes, kind: str | None, name: str, revision: str, path: str) -> None:
        repository = self._repository(kind or "model", name)
        if repository is None:
            return
        headers = {"X-Repo-Commit": repository.head}
        if path not in repository.files:
            self._send(404, {"error": "no such file"}, {**headers, "X-Error-Code": "EntryNotFound"})
            return
        content = repository.files[path]
        self._send(200, content, {**headers, "ETag": f'"{_digest(content)}"'})


def _digest(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()


_NAME = r"([\w.-]+/[\w.-]+)"
ANSWERS: dict[str, Callable[..., None]] = {
    r"/api/repos/create": Handler.create,
    r"/api/whoami-v2": Handler.whoami,
    r"/api/validate-yaml": Handler.validate,
    rf"/api/(models|datasets)/{_NAME}/tree/([^/]+)": Handler.tree,
    rf"/api/(models|datasets)/{_NAME}/preupload/([^/]+)": Handler.preupload,
    rf"/api/(models|datasets)/{_NAME}/branch/([^/]+)": Handler.branch,
    rf"/api/(models|datasets)/{_NAME}/commit/([^/]+)": Handler.commit,
    rf"/api/(models|datasets)/{_NAME}(?:/revision/([^/]+))?": Handler.info,
    rf"/(?:datasets/)?{_NAME}\.git/info/lfs/objects/batch": Handler.batch,
    r"/large/(\w+)": Handler.put,
    rf"/(?:(datasets)/)?{_NAME}/resolve/([^/]+)/(.+)": Handler.resolve,
}


@contextmanager
def serve() -> Iterator[Hub]:
    """Run the server on a free port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
