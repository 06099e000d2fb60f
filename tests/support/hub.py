"""A server on this machine that answers as the Hugging Face Hub does, as far as pushing and fetching a folder goes."""

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

TOKEN = "hf_writes"


@dataclass
class Repository:
    """One model repository: its files at each commit, oldest first."""

    private: bool
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        if revision == "main":
            return list(self.commits.items())[-1]
        return (revision, self.commits[revision]) if revision in self.commits else None

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        return sha


@dataclass
class Hub:
    """What the server holds, and what it was asked for."""

    address: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)

    def add(self, name: str, files: dict[str, bytes], private: bool = False) -> str:
        repository = self.repositories.setdefault(name, Repository(private))
        return repository.commit(files)


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._read()

    def do_GET(self) -> None:
        self._read()

    def _read(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(path)
        match = re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+))?/?", path)
        if match:
            self._about(match[1], match[2], match[3] or "main")
            return
        match = re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path)
        found = self._find(match[1], match[2]) if match else self._fail(404, "RepoNotFound")
        if match and found:
            sha, files = found
            if match[3] in files:
                content = files[match[3]]
                etag = f'"{hashlib.sha1(content).hexdigest()}"'
                self._send(200, content, {"ETag": etag, "X-Repo-Commit": sha})
            else:
                self._fail(404, "EntryNotFound", {"X-Repo-Commit": sha})

    def _about(self, name: str, what: str | None, revision: str) -> None:
        found = self._find(name, revision)
        if not found:
            return
        sha, files = found
        if what == "tree":
            entries = [{"type": "file", "path": n, "size": len(c), "oid": _blob(c)} for n, c in files.items()]
            self._json(entries)
            return
        siblings = [{"rfilename": n, "size": len(c), "blobId": _blob(c)} for n, c in files.items()]
        private = self.hub.repositories[name].private
        self._json({"id": name, "modelId": name, "sha": sha, "private": private, "tags": [], "siblings": siblings})

    def do_POST(self) -> None:
        path = unquote(urlsplit(self.path).path)
        body = self._body()
        self.hub.asked.append(path)
        if path == "/api/validate-yaml":
            self._json({"warnings": [], "errors": []})
        elif not self._may_write():
            self._fail(403 if self.headers.get("Authorization") else 401, None)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if name in self.hub.repositories:
                self._json({"error": "You already created this model repo", "url": f"{self.hub.address}/{name}"}, 409)
                return
            self.hub.add(name, {".gitattributes": b""}, asked.get("visibility") == "private" or asked.get("private"))
            self._json({"url": f"{self.hub.address}/{name}", "id": name, "name": name})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/preupload/main", path):
            files = [f["path"] for f in json.loads(body)["files"]]
            self._json({"files": [{"path": f, "uploadMode": "regular", "shouldIgnore": False} for f in files]})
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/commit/main", path):
            self._commit(match[1], body)
        else:
            self._fail(404, "RepoNotFound")

    def _commit(self, name: str, body: bytes) -> None:
        files = dict(self.hub.repositories[name].at("main")[1])
        for line in body.splitlines():
            item = json.loads(line)
            match item["key"]:
                case "file":
                    files[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
                case "deletedFile":
                    del files[item["value"]["path"]]
        sha = self.hub.add(name, files)
        self._json({"success": True, "commitOid": sha, "commitUrl": f"{self.hub.address}/{name}/commit/{sha}"})

    def _find(self, name: str, revision: str) -> tuple[str, dict[str, bytes]] | None:
        repository = self.hub.repositories.get(name)
        if repository is None or (repository.private and not self._may_write()):
            return self._fail(404 if self.headers.get("Authorization") else 401, "RepoNotFound")
        return repository.at(revision) or self._fail(404, "RevisionNotFound")

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _fail(self, status: int, code: str | None, headers: dict[str, str] | None = None) -> None:
        self._send(status, b"{}", {**(headers or {}), **({"X-Error-Code": code} if code else {})})

    def _json(self, content: object, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _blob(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve on a free port of the loopback device."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
