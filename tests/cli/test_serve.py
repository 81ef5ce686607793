"""`sordino serve`: what is refused before a model is loaded, and a real process from its ready line to its end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch

from sordino import formats
from sordino.errors import ConfigError
from sordino.prompts.attention import PromptAttention
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from sordino.server.addresses import Access
from sordino.server.serving import ServerLimits
from tests.cli.commands import run
from tests.server.process import Process, started
from tests.server.running import send_half, voice
from tests.tiny_models import tiny, tiny_base, tiny_tokenizer
from tests.waiting import WAIT, until


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--host", "0.0.0.0"), "--api-key"),
        (("--host", "192.168.1.2"), "--api-key"),
        (("--host", "::"), "--api-key"),
        (("--api-key", " "), "an empty key is no key"),
        (("--allowed-host", "http://writer.lan"), "--allowed-host"),
        (("--cors-origin", "lite.koboldai.net"), "--cors-origin"),
        (("--port", "99999"), "99999"),
        (("--rows", "0"), "--rows"),
        (("--host", "no.such.host.invalid", "--insecure"), "cannot listen"),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_is_loaded(
    monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], said: str
) -> None:
    monkeypatch.setattr("sordino.cli.loading.loaded_model", lambda *_: pytest.fail("a model was loaded"))
    result = run("serve", *flags)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_port_in_use_is_said_before_a_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sordino.cli.loading.loaded_model", lambda *_: pytest.fail("a model was loaded"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run("serve", "--port", str(taken.getsockname()[1]))
    assert result.exit_code == 2
    assert "in use" in result.stderr
    assert "--port" in result.stderr


@pytest.mark.parametrize(
    ("strength", "said"), [(1, ""), (3, ""), (0.5, "llama.cpp does not support the strength of voice")]
)
def test_a_default_soft_prompt_that_llama_cpp_cannot_run_is_for_pytorch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, strength: float, said: str
) -> None:
    metadata = Metadata(name="voice", attention=PromptAttention(strength=strength))
    formats.write(SoftPrompt(np.ones((4, 576), np.float32), metadata), tmp_path / "voice.zip", force=True)

    def running(*_: object, only_torch: str, **more: object) -> None:
        raise ConfigError(f"told <{only_torch}>")

    monkeypatch.setattr("sordino.engine.runners.build.running", running)
    flags = ("--model", "smollm2", "--port", "0", "--library", tmp_path, "--soft-prompt", "voice")
    assert f"told <{said}>" in run("serve", *flags).stderr


def test_ui_takes_the_next_free_port_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """macOS's AirPlay has port 5000, and a second page was an error."""
    reached: list[int] = []

    def listen(access: Access) -> socket.socket:
        reached.append(access.port)
        raise ConfigError("so far")

    monkeypatch.setattr(Access, "listen", listen)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        busy = taken.getsockname()[1]
        said = run("ui", "--port", str(busy)).stderr
    assert f"listens at port {busy}: the page is at port {reached[0]}." in said
    assert reached[0] > busy
    assert Access().port not in (5000, 5001, 7000, 7860, 8000, 8080, 8188)


@pytest.mark.parametrize("fault", ["port", "model"])
def test_what_is_wrong_is_said_before_pytorch_is_there(tmp_path: Path, fault: str) -> None:
    """In a process that may not import it."""
    program = "import sys; sys.modules['torch'] = None; from sordino.cli import main; main(sys.argv[1:])"
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        flags = {"port": ("--port", str(taken.getsockname()[1])), "model": ("--port", "0", "--model", "/no/such/model")}
        asked = [sys.executable, "-c", program, "serve", "--library", str(tmp_path / "nowhere"), *flags[fault]]
        ended = subprocess.run(asked, capture_output=True, text=True, timeout=WAIT, check=False)
    assert {"port": "in use", "model": "no such base model"}[fault] in ended.stderr
    assert "nowhere does not exist" in " ".join(ended.stderr.split())
    assert ended.returncode == 2


def test_a_missing_package_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    # Another test may have imported it.
    monkeypatch.delitem(sys.modules, "sordino.server.run", raising=False)
    result = run("serve", "--port", "0")
    assert result.exit_code == 1
    assert "pip install 'sordino[serve]'" in result.stderr


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[Process, str]]:
    model = tmp_path / "tiny"
    tiny("llama", dtype=torch.float32, max_position_embeddings=4096).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    library = tmp_path / "library"
    library.mkdir()
    formats.write(voice(tiny_base("llama"), 1), library / "keeper.zip", force=True)
    env = {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "config")}
    flags = ("--model", str(model), "--library", str(library), "--port", "0", "--soft-prompt", "keeper")
    with started(*flags, env=env) as process:
        yield process, process.url()


def test_it_starts_says_so_and_stops_when_asked(server: tuple[Process, str]) -> None:
    process, url = server
    process.wait_for(r"with 1 soft prompt of the library; default keeper\nNext:")
    models = [card["id"] for card in httpx.get(f"{url}/v1/models").json()["data"]]
    assert len(models) == 2
    process.process.send_signal(signal.SIGINT)
    assert process.ended() == 0
    assert process.lines[-1] == "Stopped.\n"
    assert "Traceback" not in "".join(process.lines)


@pytest.mark.skipif(sys.platform == "win32", reason="the browser is a shell script")
def test_the_page_is_shown_in_a_browser_and_left_out(tmp_path: Path) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {tmp_path}/opened\n')
    browser.chmod(0o755)
    tiny("llama", dtype=torch.float32).save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    env = {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "config"), "BROWSER": f"{browser} %s"}
    flags = ("--model", str(tmp_path / "tiny"), "--library", str(tmp_path), "--port", "0")
    with started(*flags, "--open", env=env) as process:
        url = process.url()
        assert "<title>Sordino</title>" in httpx.get(url).text
        until(lambda: (tmp_path / "opened").exists() and (tmp_path / "opened").read_text())
        assert (tmp_path / "opened").read_text().strip().rstrip("/") == url
    with started(*flags, "--no-ui", env=env) as process:
        url = process.url()
        assert {httpx.get(url + path).status_code for path in ("/", "/ui/state", "/ui/static/main.js")} == {404}
        assert httpx.get(f"{url}/health").status_code == 200


def interrupt(process: Process, times: int) -> None:
    """The second when the first has been taken: of two that a process finds waiting, the system keeps one."""
    for _ in range(times):
        process.process.send_signal(signal.SIGINT)
        process.wait_for("Finishing the running requests")


@pytest.mark.parametrize("signals", [1, 2])
def test_one_ctrl_c_lets_a_stream_finish_and_two_stop_it(server: tuple[Process, str], signals: int) -> None:
    process, url = server
    model = httpx.get(f"{url}/v1/models").json()["data"][0]["id"]
    ask = {
        "model": model,
        "prompt": "a",
        # With two it is cut off long before its end.
        "max_tokens": (200, 1000)[signals - 1],
        "stream": True,
        "n": 4,
        "logit_bias": {"1": -100, "4": -100},
    }
    text = ""
    with httpx.stream("POST", f"{url}/v1/completions", json=ask, timeout=WAIT) as answer:
        try:
            for count, line in enumerate(answer.iter_lines()):
                text += line
                if count == 4:
                    interrupt(process, signals)
        except httpx.RemoteProtocolError:
            assert signals == 2
    assert process.ended() == 0
    assert ("[DONE]" in text) == (signals == 1)
    assert "Traceback" not in "".join(process.lines)


def test_memory_without_room_for_a_row_is_said_in_one_line(tmp_path: Path) -> None:
    model = tmp_path / "tiny"
    tiny("llama", dtype=torch.float32, num_hidden_layers=64, hidden_size=512).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    result = run("serve", "--model", str(model), "--library", str(tmp_path), "--port", "0", "--kv-memory", "1")
    assert result.exit_code == 1
    assert "no room for a row" in result.stderr
    assert "--kv-memory" in result.stderr


def test_without_a_model_it_says_how_to_get_one(tmp_path: Path) -> None:
    """And a library that is a file is called one; nearer than "every address" is this machine's own."""
    (tmp_path / "file").touch()
    flags = ("--library", str(tmp_path / "file"), "--port", "0", "--host", "0.0.0.0", "--api-key", " sesame\n")
    with started(*flags, env={"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "config")}) as process:
        found = process.wait_for(
            r"Next: +open (http://127.0.0.1:\d+) in a browser and choose a model, .*--model smollm2"
        )
        process.wait_for("is a file")
        headers = {"Authorization": "Bearer sesame"}
        assert httpx.get(f"{found[1]}/v1/soft_prompts", headers=headers).status_code == 200
        assert httpx.get(f"{found[1]}/v1/soft_prompts").status_code == 401
        # Without a model it needs neither matplotlib nor transformers' models, which import scipy where it is installed.
        if (loaded := Path(f"/proc/{process.process.pid}/maps")).exists():
            assert not re.findall("/matplotlib/|/scipy/", loaded.read_text())


def test_two_ctrl_c_wait_for_nobody(server: tuple[Process, str]) -> None:
    """Not for a request whose body never comes."""
    process, url = server
    with send_half(url):
        assert httpx.get(f"{url}/health").status_code == 200
        began = time.monotonic()
        interrupt(process, 2)
        assert process.ended() == 0
        assert time.monotonic() - began < ServerLimits.body_seconds
    assert "Traceback" not in "".join(process.lines)


def test_a_runner_that_is_not_installed_is_refused_before_anything_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sordino.engine.vllm.start.find_spec", lambda name: None)
    refused = run("serve", "--runner", "vllm", "--port", "0")
    assert refused.exit_code == 1
    assert "--runner vllm: vLLM is not installed; pip install 'sordino[vllm]'" in refused.stderr
