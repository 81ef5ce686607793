"""vLLM, in an environment of its own: its backend's checks, and `sordino serve --runner vllm` as people run it."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from shutil import copyfile

import httpx
import pytest

from sordino.engine.vllm.backend import SAMPLER
from sordino.models import files
from tests.programs.environment import REPOSITORY, environment, installed, ran
from tests.programs.vllm_server import family, vllm_server
from tests.server.process import Process, started
from tests.waiting import until

pytestmark = pytest.mark.slow

FLAGS = ("--runner", "vllm", "--vllm", "enforce-eager", "--vllm", "dtype=float32", "--kv-memory", "512")

# The packaged voices are held, which vLLM cannot do.
HELD = {"hold": 0}
KEY = "a-key-of-the-tests"


@pytest.fixture(scope="module")
def python() -> Path:
    return environment("vllm")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("package"))


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("library")
    with resources.as_file(resources.files("sordino").joinpath("data", "prompts")) as packaged:
        for path in packaged.glob("*.zip"):
            copyfile(path, folder / path.name)
    return folder


def test_its_backend_does_what_a_backend_owes(python: Path, package: Path) -> None:
    arguments = ("-q", "-W", "ignore", "-p", "no:cacheprovider", "--rootdir", REPOSITORY)
    said = ran(
        *(python, "-m", "pytest", *arguments, REPOSITORY / "tests" / "programs" / "vllm_checks.py"),
        env={"PYTHONPATH": str(package)},
    )
    assert "skipped" not in said, said
    assert "passed" in said


@pytest.fixture
def server(python: Path, package: Path, library: Path, tmp_path: Path) -> Iterator[Process]:
    env = {"PYTHONPATH": str(package), "XDG_CONFIG_HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    flags = ("--model", "smollm2", *FLAGS, "--port", "0", "--library", str(library))
    with started(*flags, env=env, python=python) as process:
        yield process
        # What a test left of it.
        for child in family(process.process):
            child.kill()


class Stream(threading.Thread):
    """A long completion that is read as it comes, until its end or until it is left."""

    def __init__(self, url: str, model: str) -> None:
        super().__init__(daemon=True)
        self.url, self.model = url, model
        self.pieces: list[str] = []
        self.errors: list[str] = []
        self.begun, self.left = threading.Event(), threading.Event()

    def run(self) -> None:
        asked = {"model": self.model, "prompt": "The sea", "max_tokens": 1500, "temperature": 0, **HELD}
        asked |= {"stream": True, "ignore_eos": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=asked, timeout=240) as answer:
            for line in answer.iter_lines():
                self.begun.set()
                if self.left.is_set():
                    break
                if not line.startswith("data: ") or line == "data: [DONE]":
                    continue
                if "error" in (payload := json.loads(line[6:])):
                    self.errors.append(payload["error"]["message"])
                else:
                    self.pieces.append(payload["choices"][0]["text"])
        self.begun.set()


def test_prompts_are_replaced_clients_leave_and_the_engine_is_killed(server: Process, library: Path) -> None:
    """One server, since a start takes half a minute; its engine is killed last."""
    url = server.url()
    with httpx.Client(base_url=url, timeout=240) as client:
        _a_prompt_is_replaced(client, url, library)
        _a_client_leaves(client, url)
        _what_it_cannot_do_is_refused(client)
        _processes_are_in_a_group_of_their_own(server)
        # vLLM prints one of its own when its engine dies.
        assert "Traceback" not in "".join(server.lines)
        _the_engine_is_killed(client, server, url)
    server.process.send_signal(signal.SIGTERM)
    assert server.ended(60) == 0


def written(client: httpx.Client, model: str) -> str:
    asked = {"model": model, "prompt": "The sea", "max_tokens": 12, "temperature": 0, **HELD}
    answer = client.post("/v1/completions", json=asked)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["choices"][0]["text"])


def _a_prompt_is_replaced(client: httpx.Client, url: str, library: Path) -> None:
    names = ("port-dolor", "village-gazette")
    before = {name: written(client, f"smollm2:{name}") for name in names}
    assert len(set(before.values())) == 2
    others = [Stream(url, model) for model in ("smollm2", "smollm2:village-gazette")]
    for other in others:
        other.start()
        assert other.begun.wait(120)
    # The file is another voice from now on; what is cached of the old one is not taken for it.
    copyfile(library / "village-gazette.zip", library / "new.tmp")
    os.replace(library / "new.tmp", library / "port-dolor.zip")
    until(lambda: written(client, "smollm2:port-dolor") == before["village-gazette"])
    assert client.get("/health").json()["running"] >= 2, "the others wrote all the while"
    for other in others:
        assert other.is_alive()
        assert other.pieces
        assert other.errors == []
        other.left.set()
        other.join(60)


def _a_client_leaves(client: httpx.Client, url: str) -> None:
    asked = {"model": "smollm2", "prompt": "The sea", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    with client.stream("POST", "/v1/completions", json=asked) as answer:
        # Kept: an iterator that is dropped closes the connection.
        lines = answer.iter_lines()
        assert next(lines).startswith("data: ")
        _until_running(client, 1)
    _until_running(client, 0)


def _until_running(client: httpx.Client, count: int) -> None:
    until(lambda: client.get("/health").json()["running"] == count, lambda: client.get("/health").text)


def _what_it_cannot_do_is_refused(client: httpx.Client) -> None:
    asked = {"model": "smollm2:keeper", "prompt": "The sea", "max_tokens": 5}
    for fields, named in (
        ({}, "hold"),
        ({"hold": 0, "strength": 2}, "strength"),
        ({"hold": 0, "echo": True, "logprobs": 1}, "log probabilities of a text that is read"),
    ):
        answer = client.post("/v1/completions", json={**asked, **fields})
        assert answer.status_code == 400, (fields, answer.text)
        assert f"vLLM does not support {named}" in answer.json()["error"]["message"]


def _processes_are_in_a_group_of_their_own(server: Process) -> None:
    """Ctrl-C at a terminal goes to the server's group."""
    own = os.getpgid(server.process.pid)
    engines = [child for child in family(server.process) if "EngineCore" in child.name() or "Worker" in child.name()]
    assert engines
    assert all(os.getpgid(child.pid) != own for child in engines)


def _the_engine_is_killed(client: httpx.Client, server: Process, url: str) -> None:
    streams = [Stream(url, model) for model in ("smollm2", "smollm2:port-dolor", "smollm2:village-gazette")]
    for one in streams:
        one.start()
    for one in streams:
        assert one.begun.wait(120)
    (engine,) = [child for child in family(server.process) if "EngineCore" in child.name()]
    engine.kill()
    for one in streams:
        one.join(120)
        assert not one.is_alive()
        (error,) = one.errors
        assert "the engine has stopped after an error" in error
    health = client.get("/health")
    assert health.status_code == 503
    assert health.json()["status"] == "the engine has stopped after an error"
    assert health.json()["running"] == 0
    # The page shows the error of what it asks for.
    write = {"do": "write", "id": 1, "text": {"story": "The sea"}, "soft_prompts": [""]}
    said = client.post("/ui/ask", json=write).text
    assert "the engine has stopped after an error" in said, said


@pytest.fixture
def vllm_serve(python: Path, package: Path, library: Path, tmp_path: Path) -> Iterator[str]:
    """`vllm serve` with our plugin; the address. It has a key, as it would in public."""
    folder = files.prepare(files.resolve("smollm2")).folder
    env = {"PYTHONPATH": str(package), "VLLM_PLUGINS": "sordino", "SORDINO_LIBRARY": str(library)}
    flags = ("--enable-prompt-embeds", "--api-key", KEY, "--served-model-name", "lamp", "--logits-processors", SAMPLER)
    with vllm_server(python, folder, tmp_path / "vllm.log", *flags, env=env) as address:
        yield address


def test_soft_prompts_in_a_server_that_vllm_runs(vllm_serve: str) -> None:
    with httpx.Client(base_url=vllm_serve, timeout=240, headers={"Authorization": f"Bearer {KEY}"}) as client:
        names = [one["id"] for one in client.get("/v1/models").json()["data"]]
        assert names[0] == "lamp"
        assert {"lamp:keeper", "lamp:port-dolor", "lamp:village-gazette"} <= set(names)
        asked = {"prompt": "The sea", "max_tokens": 12, "temperature": 0}

        def completed(**fields: object) -> httpx.Response:
            return client.post("/v1/completions", json={**asked, **fields})

        plain = completed(model="lamp").json()["choices"][0]
        # A field of vLLM's own: the base model stays with vLLM.
        assert completed(model="lamp", return_token_ids=True).json()["choices"][0]["token_ids"]
        voice = completed(model="lamp:keeper", hold=0).json()
        assert voice["choices"][0]["text"] != plain["text"]
        assert voice["usage"]["prompt_tokens"] > 20
        by_field = completed(model="lamp", soft_prompt="keeper", hold=0).json()
        assert by_field["choices"][0]["text"] == voice["choices"][0]["text"]
        # Our samplers are there, as vLLM was started with ours.
        drawn = completed(model="lamp:keeper", hold=0, temperature=0.8, dry_multiplier=0.8, seed=1)
        assert drawn.status_code == 200, drawn.text
        refused = completed(model="lamp:keeper")
        assert refused.status_code == 400
        assert "vLLM does not support hold" in refused.json()["error"]["message"]
        assert completed(model="lamp:nobody").status_code == 404
        tensor = completed(model="lamp", prompt_embeds="AAAA")
        assert tensor.status_code == 400
        assert "tensors are not taken over HTTP" in tensor.json()["error"]["message"]
        part = {"role": "user", "content": [{"type": "prompt_embeds", "prompt_embeds": "AAAA"}]}
        assert client.post("/v1/chat/completions", json={"model": "lamp", "messages": [part]}).status_code == 400
        # The library and KoboldAI's routes.
        assert {one["id"] for one in client.get("/v1/soft_prompts").json()["data"]} >= {"keeper", "port-dolor"}
        kobold = client.post("/api/v1/generate", json={"prompt": "The sea", "max_length": 5})
        assert kobold.status_code == 200, kobold.text
        assert kobold.json()["results"][0]["text"]
    for path in ("/v1/soft_prompts", "/api/v1/model", "/v1/models"):
        assert httpx.get(f"{vllm_serve}{path}").status_code == 401, path
