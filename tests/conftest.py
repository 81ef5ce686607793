"""What every test has: no network, a library of its own, and the shared fixtures."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before anything imports torch or huggingface_hub, which read them once.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["PIP_NO_INDEX"] = "1"
# The width of a terminal, which xdist hands on to its workers: output that is read here is as wide as piped output.
os.environ.pop("COLUMNS", None)
if "PYTEST_XDIST_WORKER" in os.environ:
    # Two workers with two threads each on two cores are slower than either alone.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import httpx
import pytest
from hypothesis import HealthCheck, settings

from tests.waiting import WAIT

if TYPE_CHECKING:
    from sordino.models.base_model import BaseModel

REPOSITORY = Path(__file__).resolve().parents[1]

# No limit of time: a busy machine is no fault.
settings.register_profile(
    "sordino",
    deadline=None,
    derandomize="CI" in os.environ,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("sordino")

# httpx's own limit is 5 s, in one value that all its functions share.
_limit: httpx.Timeout = httpx.get.__kwdefaults__["timeout"]
_limit.connect = _limit.read = _limit.write = _limit.pool = WAIT
# Unless told otherwise each request reads the certificates of all authorities, 33 ms of processor time.
_trusted = httpx.create_ssl_context()
for _name in ("get", "head", "options", "post", "put", "patch", "delete", "request"):
    getattr(httpx, _name).__kwdefaults__["verify"] = _trusted
for _client in (httpx.Client, httpx.AsyncClient):
    _client.__init__.__kwdefaults__["verify"] = _trusted  # type: ignore[misc]
httpx.stream.__wrapped__.__kwdefaults__["verify"] = _trusted  # type: ignore[attr-defined]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A slow test, or one of the page, in a file that `make test-slow` or `make e2e` does not read is an error."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    lost = [path for path in slow if "mark.slow" not in path.read_text(encoding="utf-8")]
    driven = {item.path for item in items if item.get_closest_marker("e2e")}
    lost += [path for path in driven if path.parent.name not in ("e2e", "several")]
    if lost:
        raise pytest.UsageError(f"{lost[0]}: `make test-slow` or `make e2e` would not find its tests (Makefile)")


@pytest.fixture(scope="session", autouse=True)
def _no_network() -> Iterator[None]:
    """A test that reaches for the network fails instead of passing on some machines only."""
    connect = socket.socket.connect

    def local_only(self: socket.socket, address: Any) -> None:
        host = address[0] if isinstance(address, tuple) else "localhost"
        if host not in ("localhost", "127.0.0.1", "::1"):
            raise OSError(f"tests run without a network, and something wanted to reach {host}")
        connect(self, address)

    patch = pytest.MonkeyPatch()
    patch.setattr(socket.socket, "connect", local_only)
    yield
    patch.undo()


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A cache of base models with links to the user's. What a test converts stays here: in the user's cache another test, or the
    next run, would find it converted.
    """
    from sordino.models.cache import cache_folder

    users, own = cache_folder(), tmp_path_factory.mktemp("cache")
    for folder in ("models", "converted"):
        (own / folder).mkdir()
        for path in (users / folder).glob("*"):
            # Another process may be writing there.
            if not path.name.startswith("."):
                (own / folder / path.name).symlink_to(path)
    patch = pytest.MonkeyPatch()
    patch.setenv("SORDINO_CACHE", str(own))
    yield
    patch.undo()


@pytest.fixture(autouse=True)
def _own_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands under test find an empty library, never the user's."""
    monkeypatch.setenv("SORDINO_LIBRARY", str(tmp_path / "library"))
    monkeypatch.delenv("SORDINO_DEBUG", raising=False)


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of base models of this test's own, without any."""
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of real soft prompts and texts that lies beside some checkouts; the test is skipped elsewhere."""
    folder = REPOSITORY.parent / "shared"
    if not folder.is_dir():
        pytest.skip("the folder of real samples, ../shared, is not beside this checkout")
    return folder


@pytest.fixture(scope="session")
def smollm2() -> BaseModel:
    """The bundled base model, float32 on the CPU: loaded once per process, so never change it."""
    from sordino.models import base_model

    return base_model.load("smollm2", device="cpu", dtype="float32")
