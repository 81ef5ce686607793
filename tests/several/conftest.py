"""Two real servers of one library folder, and an nginx in front of them."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import torch

from sordino import formats
from tests.server.process import Process, started
from tests.server.running import voice
from tests.tiny_models import tiny, tiny_base, tiny_tokenizer
from tests.waiting import WAIT, free_port, until

SERVING = Path(__file__).parents[2] / "docs" / "serving.md"


@dataclass(frozen=True)
class Pair:
    """Two servers: their addresses and processes, their library, and flags and environment for a third."""

    urls: tuple[str, str]
    processes: tuple[Process, Process]
    library: Path
    flags: tuple[str, ...]
    env: dict[str, str]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("several")
    # A text of thousands of tokens takes seconds.
    tiny("llama", dtype=torch.float32, max_position_embeddings=4096).save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    library = folder / "library"
    library.mkdir()
    formats.write(voice(tiny_base("llama"), 1), library / "keeper.zip", force=True)
    env = {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(folder / "config")}
    flags = ("--model", str(folder / "tiny"), "--library", str(library), "--port", "0")
    with started(*flags, env=env) as one, started(*flags, env=env) as other:
        yield Pair((one.url(), other.url()), (one, other), library, flags, env)


@pytest.fixture(scope="module")
def nginx(pair: Pair, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an nginx with the configuration that docs/serving.md gives."""
    program = shutil.which("nginx") or "/usr/sbin/nginx"
    if not Path(program).exists():
        pytest.skip("needs nginx (apt-get install nginx-light)")
    folder = tmp_path_factory.mktemp("nginx")
    port = free_port()
    (folder / "nginx.conf").write_text(configuration(port, pair.urls, folder))
    command = [program, "-c", str(folder / "nginx.conf"), "-p", str(folder), "-e", str(folder / "error.log")]
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
    try:
        until(lambda: answers(f"http://127.0.0.1:{port}"), lambda: (folder / "error.log").read_text())
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(WAIT)


def configuration(port: int, urls: tuple[str, str], folder: Path) -> str:
    """The document's part, at free ports, in an nginx that writes into this folder only."""
    text = SERVING.read_text(encoding="utf-8")
    found = re.search(r"(?ms)^    upstream sordino .*?^    }\n\n    server .*?^    }\n", text)
    assert found, "docs/serving.md shows no configuration"
    part = found[0]
    for address, url in zip(("10.0.0.1:5100", "10.0.0.2:5100"), urls, strict=True):
        assert address in part
        part = part.replace(address, url.removeprefix("http://"))
    part, count = re.subn(r"listen \S+;", f"listen 127.0.0.1:{port};", part)
    assert count == 1
    places = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "\n".join(f"{name}_temp_path {folder}/{name};" for name in places)
    head = f"daemon off; master_process off; pid {folder}/pid; events {{}}"
    return f"{head}\nhttp {{ access_log off; {temporary}\n{part}}}\n"


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/health", timeout=WAIT).status_code == 200
    except httpx.TransportError:
        return False
