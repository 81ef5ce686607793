"""A stand-in for the Hub: the part of its API that `huggingface_hub` 2.4 uses for soft prompts, on 127.0.0.1.

Written from the client's own calls, which it logs. Files of some kinds are "large": they have a SHA-256, as with Git LFS.
It knows nothing of Xet: processes that upload to it run with HF_HUB_DISABLE_XET=1, with which the client takes the LFS way.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import yaml

from tests.waiting import until

LARGE = (".zip", ".safetensors", ".npy", ".bin", ".pt")
TOKEN = "hf_" + "SecretOfInes" * 3


@dataclass
class Repository:
    """commits: from SHA to files, in order. lies: what the listing says of a file in place of the truth."""

    private: bool = False
    gated: bool = False
    downloads: int = 0
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    lies: dict[str, dict[str, Any]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes]) -> str:
        sha = hashlib.sha1(repr((len(self.commits), sorted(files.items()))).encode()).hexdigest()
        self.commits[sha] = files
        self.refs["main"] = sha
        return sha

    def at(self, revision: str) -> str | None:
        revision = self.refs.get(revision, revision)
        return revision if revision in self.commits else None


class StandIn(ThreadingHTTPServer):
    """repositories: by USER/NAME. log: (method, path) of every request. ranges: of large files, as they were asked for.

    fail: status and headers of every answer, or None.

    halfway: if set, half of a large file is sent, or one has arrived, `half_sent` is set, and the rest waits for `halfway`.
    cuts: how often the connection is cut in the middle of a large file.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.log: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.bodies: list[bytes] = []
        self.fail: tuple[int, dict[str, str]] | None = None
        self.half_sent = threading.Event()
        self.halfway: threading.Event | None = None
        self.cuts = 0
        self.refused_licences: set[str] = set()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def add(self, name: str, files: dict[str, bytes], **known: Any) -> Repository:
        made = self.repositories[name] = Repository(**known)
        made.commit(files)
        return made

    def environment(self, home: Path, *, token: bool = True) -> dict[str, str]:
        """For a process whose Hub this is."""
        own = {"HF_ENDPOINT": self.address, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home), "HF_HUB_DISABLE_XET": "1"}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        return {**kept, **own, "HF_HUB_DISABLE_TELEMETRY": "1", **({"HF_TOKEN": TOKEN} if token else {})}


def use(server: StandIn, home: Path, monkeypatch: pytest.MonkeyPatch, *, token: str | None = TOKEN) -> None:
    """Make it the Hub of this process, without Xet."""
    constants = "huggingface_hub.constants"
    monkeypatch.setattr(f"{constants}.ENDPOINT", server.address)
    monkeypatch.setattr(
        f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", server.address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(f"{constants}.HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)


@contextmanager
def killed_halfway(
    server: StandIn, home: Path, *arguments: object, ready: Callable[[], bool] = lambda: True
) -> Iterator[None]:
    """Within, a command of ours was killed when half of a file had been sent and `ready`. Then it is run again, to its end."""
    server.halfway = threading.Event()
    command = [sys.executable, "-m", "sordino", *map(str, arguments)]
    environment = server.environment(home)
    with subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as child:
        assert server.half_sent.wait(300)
        until(ready)
        child.kill()
    yield
    server.halfway.set()
    server.halfway = None
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@contextmanager
def stand_in() -> Iterator[StandIn]:
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        yield server
        server.shutdown()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def log_message(self, *given: object) -> None:
        pass

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.query, parts = parse_qs(url.query), [unquote(part) for part in url.path.strip("/").split("/")]
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.log.append((self.command, self.path))
        self.server.bodies.append(self.body)
        if self.server.fail is not None:
            status, headers = self.server.fail
            self._send(status, b"", headers)
            return
        match parts:
            case [""]:
                self._send(200, b"")
            case ["api", "whoami-v2"]:
                self._whoami()
            case ["api", "models"]:
                self._list()
            case ["api", "validate-yaml"]:
                self._validate()
            case ["api", "repos", "create"]:
                self._create()
            case ["api", "models", user, name, "preupload", _]:
                self._preupload(f"{user}/{name}")
            case ["api", "models", user, name, "commit", branch]:
                self._commit(f"{user}/{name}", branch)
            case ["api", "models", user, name, *rest]:
                self._info(f"{user}/{name}", rest[1] if rest[:1] == ["revision"] else "main")
            case [user, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                self._batch()
            case ["lfs", oid]:
                if self.server.halfway is not None:
                    self.server.half_sent.set()
                    self.server.halfway.wait(300)
                self.server.uploads[oid] = self.body
                # Its sender may have been killed.
                with suppress(OSError):
                    self._send(200, b"")
            case [user, name, "resolve", revision, *path]:
                self._resolve(f"{user}/{name}", revision, "/".join(path))
            case _:
                self._send(404, b"")

    def _send(
        self, status: int, body: bytes, headers: dict[str, str] | None = None, kind: str = "application/json"
    ) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: object) -> None:
        self._send(200, json.dumps(value).encode())

    def _refuse(self, status: int, code: str = "", message: str = "") -> None:
        self._send(status, b"{}", {"X-Error-Code": code, "X-Error-Message": message})

    @property
    def _known(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _found(self, name: str) -> Repository | None:
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and not self._known):
            self._refuse(404 if self._known else 401, "RepoNotFound", "Repository not found")
            return None
        return repository

    def _may_write(self, name: str) -> bool:
        if self._known and name.startswith("ines/"):
            return True
        self._refuse(403 if self._known else 401, "", "You have no rights to write here")
        return False

    def _whoami(self) -> None:
        if self._known:
            self._json({"name": "ines", "type": "user", "orgs": []})
        else:
            self._refuse(401, "", "Invalid credentials in Authorization header")

    def _list(self) -> None:
        wanted, words = self.query.get("filter", []), self.query.get("search", [""])[0]
        rows = [
            self._facts(name, repository, repository.refs["main"])
            for name, repository in self.server.repositories.items()
            if words in name and not repository.private and repository.commits
        ]
        rows = [row for row in rows if set(wanted) <= set(row["tags"])]
        self._json(sorted(rows, key=lambda row: -row["downloads"])[: int(self.query.get("limit", ["1000"])[0])])

    def _info(self, name: str, revision: str) -> None:
        repository = self._found(name)
        if repository is None:
            return
        if not repository.commits:
            self._json({"id": name, "sha": None, "siblings": [], "tags": [], "private": repository.private})
            return
        sha = repository.at(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        siblings = [_sibling(path, data, repository) for path, data in repository.commits[sha].items()]
        self._json(self._facts(name, repository, sha) | {"siblings": siblings})

    def _facts(self, name: str, repository: Repository, sha: str) -> dict[str, Any]:
        card = _head(repository.commits[sha].get("README.md", b""))
        tags = card.get("tags")
        return {
            "id": name,
            "author": name.partition("/")[0],
            "sha": sha,
            "private": repository.private,
            "gated": "manual" if repository.gated else False,
            "downloads": repository.downloads,
            "likes": 0,
            "lastModified": "2026-11-29T08:00:00.000Z",
            "tags": [*(map(str, tags) if isinstance(tags, list) else []), f"license:{card.get('license')}"],
            "cardData": card,
        }

    def _resolve(self, name: str, revision: str, path: str) -> None:
        repository = self._found(name)
        if repository is None:
            return
        if repository.gated:
            self._refuse(403 if self._known else 401, "GatedRepo", "Access to this model is restricted")
            return
        sha = repository.at(revision)
        if sha is None:
            self._refuse(404, "RevisionNotFound")
            return
        data = repository.commits[sha].get(path)
        if data is None:
            self._refuse(404, "EntryNotFound")
            return
        etag = hashlib.sha256(data).hexdigest() if path.endswith(LARGE) else git_hash(data)
        headers = {"ETag": f'"{etag}"', "X-Repo-Commit": sha, "Accept-Ranges": "bytes"}
        self.server.ranges += [asked] if (asked := self.headers.get("Range", "")) else []
        first = int((asked or "bytes=0-")[6:].partition("-")[0])
        if self.command == "HEAD" or not path.endswith(LARGE):
            self._send(200, data, headers, "application/octet-stream")
            return
        self.send_response(206 if first else 200)
        for key, value in {**headers, "Content-Length": str(len(data) - first)}.items():
            self.send_header(key, value)
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        self._send_in_halves(data[first:])

    def _send_in_halves(self, data: bytes) -> None:
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        if self.server.cuts:
            self.server.cuts -= 1
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        if self.server.halfway is not None:
            self.server.half_sent.set()
            self.server.halfway.wait(300)
        # Its reader may have been killed.
        with suppress(OSError):
            self.wfile.write(data[len(data) // 2 :])
            self.wfile.flush()

    def _create(self) -> None:
        given = json.loads(self.body)
        name = f"{given['organization'] or 'ines'}/{given['name']}"
        if not self._may_write(name):
            return
        if name in self.server.repositories:
            self._send(409, json.dumps({"url": f"{self.server.address}/{name}"}).encode())
            return
        self.server.repositories[name] = Repository(private=given.get("visibility") == "private")
        self._json({"url": f"{self.server.address}/{name}"})

    def _validate(self) -> None:
        head = _head(json.loads(self.body)["content"].encode())
        wrong = [key for key in ("license", "base_model", "language") if not isinstance(head.get(key, ""), str)]
        wrong += ["license"] if head.get("license") in self.server.refused_licences else []
        errors = [{"message": f'"{key}" is not valid'} for key in wrong]
        self._send(400 if errors else 200, json.dumps({"errors": errors, "warnings": []}).encode())

    def _preupload(self, name: str) -> None:
        if not self._may_write(name) or (repository := self._found(name)) is None:
            return
        there = repository.commits.get(repository.refs.get("main", ""), {})
        files = []
        for one in json.loads(self.body)["files"]:
            large = one["path"].endswith(LARGE)
            data = there.get(one["path"])
            oid = data if data is None else hashlib.sha256(data).hexdigest() if large else git_hash(data)
            mode = "lfs" if large else "regular"
            files.append({"path": one["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        self._json({"files": files})

    def _batch(self) -> None:
        objects = [
            one | {"actions": {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _commit(self, name: str, branch: str) -> None:
        if not self._may_write(name) or (repository := self._found(name)) is None:
            return
        lines = [json.loads(line) for line in self.body.splitlines()]
        head, changes = lines[0]["value"], lines[1:]
        now = repository.refs.get(branch, "")
        if head.get("parentCommit") not in (None, now):
            self._refuse(412, "", "A commit has happened since")
            return
        files = dict(repository.commits.get(now, {}))
        for change in changes:
            value = change["value"]
            match change["key"]:
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.server.uploads[value["oid"]]
                case "deletedFile":
                    del files[value["path"]]
        sha = repository.commit(files)
        self._json({"commitUrl": f"{self.server.address}/{name}/commit/{sha}", "commitOid": sha})


def git_hash(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _sibling(path: str, data: bytes, repository: Repository) -> dict[str, Any]:
    known: dict[str, Any] = {"rfilename": path, "size": len(data), "blobId": git_hash(data)}
    if path.endswith(LARGE):
        known["lfs"] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest(), "pointerSize": 130}
    return known | repository.lies.get(path, {})


def _head(card: bytes) -> dict[str, Any]:
    parts = card.decode(errors="replace").split("---\n")
    found = yaml.safe_load(parts[1]) if len(parts) > 2 else None
    return found if isinstance(found, dict) else {}
