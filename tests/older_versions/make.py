"""What a user of this version has on disk, made by its own commands and routes; later versions have to read it.

    python -m tests.older_versions.make tests/older_versions/VERSION.tar.xz

Run it with a released version, once, and keep what it writes. In the archive every path of the machine is `PLACE`.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import torch

from tests.server.process import started
from tests.tiny_models import tiny, tiny_gguf, tiny_tokenizer

PLACE = "/where-sordino-was"
# What holds paths; all else is binary, or says none.
TEXT_FILES = (".json", ".jsonl", ".txt", ".log", ".html")
SMALL: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
FLAGS = ("--tokens=4", "--batch=2", "--row-tokens=16", "--init=vocab", "--patience=0", "--sample-every=1000")
LONG = {"tokens": 4, "batch": 2, "row_tokens": 16, "init": "vocab", "patience": 0, "steps": 4000, "sample_every": 4000}
STEPS, STOPPED_AT = 160, 20
LINE = "The keeper wrote of the lamp and the sea, and of the ships that went by in the fog. "


def environment(home: Path) -> dict[str, str]:
    """Where the program keeps what it keeps."""
    folders = {f"XDG_{kind}_HOME": str(home / kind.lower()) for kind in ("DATA", "CONFIG", "CACHE")}
    return {**folders, "HOME": str(home), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}


class Maker:
    """home: the user's. Commands run in its folder `work`, on `models/tiny`."""

    def __init__(self, home: Path) -> None:
        self.home, self.work = home, home / "work"
        self.model = home / "models" / "tiny"
        self.env = {**{k: v for k, v in os.environ.items() if k != "SORDINO_LIBRARY"}, **environment(home)}

    def inputs(self) -> None:
        self.work.mkdir(parents=True)
        network = tiny("llama", dtype=torch.float32, **SMALL)
        network.save_pretrained(self.model)
        tiny_tokenizer().save_pretrained(self.model)
        tiny_gguf(self.model.parent / "tiny.gguf", network=tiny("llama", dtype=torch.float32, seed=1, **SMALL))
        for name, days in {"log": 12, "poe": 8, "austen": 8}.items():
            folder = self.home / "texts" / name
            folder.mkdir(parents=True)
            for day in range(days):
                (folder / f"{day:02}.txt").write_text(f"Day {day} of {name}. " + LINE * (day % 3 + 3))

    def command(self, *arguments: object) -> list[str]:
        return [sys.executable, "-m", "sordino", *map(str, arguments)]

    def run(self, *arguments: object) -> None:
        subprocess.run(self.command(*arguments), cwd=self.work, env=self.env, check=True)

    def stopped(self, metrics: Path, *arguments: object) -> None:
        """A command that is interrupted once `metrics` tells of enough steps."""
        process = subprocess.Popen(self.command(*arguments), cwd=self.work, env=self.env)
        wait_for(lambda: process.poll() is not None or steps_in(metrics) >= STOPPED_AT)
        process.send_signal(signal.SIGINT)
        if process.wait(60) or not steps_in(metrics):
            raise SystemExit(f"{metrics} was not stopped in its middle")

    def commands(self) -> None:
        model, texts = f"--model={self.model}", self.home / "texts"
        train = ("train", texts / "log", model, f"--steps={STEPS}", *FLAGS)
        self.run(
            *train, "--out=whole.zip", "--author=Ines", "--licence=CC0-1.0", "--tags=sea,diary", "--rating=general"
        )
        self.stopped(self.work / "half.run/metrics.jsonl", *train, "--out=half.zip")
        group = ("train", f"--voice=poe={texts / 'poe'}", f"--voice=austen={texts / 'austen'}", model, *FLAGS)
        self.stopped(self.work / "voices/poe.run/metrics.jsonl", *group, f"--steps={STEPS}", "--out-dir=voices")
        sweep = ("sweep", texts / "log", f"--model={self.model},{self.model.parent / 'tiny.gguf'}", "--out-dir=sweep")
        grid = ("--tokens=2,4", "--init=vocab", f"--steps={STEPS}", "--batch=2", "--row-tokens=16", "--full")
        self.stopped(self.work / "sweep/2-tiny.gguf/001/metrics.jsonl", *sweep, *grid)
        self.run("list")
        self.run("remove", "port-dolor", "--yes")
        self.run("install", "whole.zip", "--name=fog")
        self.run("convert", "whole.zip", "whole-peft", "--to=peft")
        self.run("install", "whole-peft", "--name=from-peft")
        self.run("edit", "from-peft", "--description=Made of a PEFT folder.")
        fit = ("mixture", "fit", "--data", texts / "poe", model, "--row-tokens=16", "--context-tokens=4", "--limit=512")
        self.run(*fit, "--components", "fog", "from-peft", "--gate=always", "--out=two.mix.zip")
        self.run(*fit, "--joint=2", "--tokens=3", "--steps=4", "--gate=never", "--out=joint.mix.zip")
        self.run("install", "two.mix.zip")

    def page(self) -> None:
        flags = (f"--model={self.model}", "--runner=torch", "--port=0", "--soft-prompt=fog")
        with (
            started(*flags, env={"SORDINO_LIBRARY": "", **self.env}) as server,
            httpx.Client(base_url=server.url()) as http,
        ):
            self.stories(http)
            running = self.queue(http)
            # As when the machine loses power: neither the server nor the run can say anything.
            server.process.kill()
            os.kill(running, signal.SIGKILL)

    def stories(self, http: httpx.Client) -> None:
        story = {"title": "Fog", "text": LINE * 3, "memory": "1860.", "note": "Sad."}
        said(http.put("/ui/stories/story-1", json=story))
        said(http.put("/ui/stories/story-1", json={**story, "text": LINE * 4, "revision": 1, "writer": "a"}))
        chat = [{"role": "user", "content": "Who is there?"}, {"role": "assistant", "content": "The keeper."}]
        card = {"name": "Keeper", "description": "Old.", "first_mes": "Come in."}
        said(http.put("/ui/stories/chat-1", json={"title": "At night", "chat": chat, "character": card}))

    def queue(self, http: httpx.Client) -> int:
        """A run in each state that there is. Returns the process of the one that runs."""

        def draft() -> str:
            files = [("files", (name, f"{name}. {LINE * 30}".encode())) for name in ("a.txt", "folder/b.txt")]
            return str(said(http.post("/ui/texts", files=files))["id"])

        def begun(name: str, **settings: Any) -> str:
            job = draft()
            body = {"model": str(self.model), "settings": {**LONG, "name": name, **settings}}
            said(http.post(f"/ui/jobs/{job}/train", json=body))
            return job

        def until(job: str, *states: str) -> None:
            wait_for(lambda: said(http.get(f"/ui/jobs/{job}"))["state"] in states)

        def in_its_middle(job: str) -> None:
            wait_for(lambda: len(said(http.get(f"/ui/jobs/{job}"))["events"]) >= STOPPED_AT)

        done = begun("done", steps=8)
        until(done, "done")
        until(begun("failed", init="file:nowhere.zip"), "failed")
        stopped = begun("stopped")
        in_its_middle(stopped)
        said(http.post(f"/ui/jobs/{stopped}/stop"))
        until(stopped, "stopped")
        looked = draft()
        said(http.post(f"/ui/jobs/{looked}/look", json={"model": str(self.model), "settings": {**LONG, "steps": 3}}))
        wait_for(lambda: not said(http.get(f"/ui/jobs/{looked}/look"))["busy"])
        running = begun("running")
        in_its_middle(running)
        begun("waiting", steps=3, start_from="fog")
        stored = self.home / "data/sordino/training" / running / "job.json"
        return int(httpx.Response(200, content=stored.read_bytes()).json()["pid"])


def said(answer: httpx.Response) -> Any:
    answer.raise_for_status()
    return answer.json()


def steps_in(metrics: Path) -> int:
    return metrics.read_text().count('"kind": "step"') if metrics.exists() else 0


def wait_for(condition: Callable[[], bool], seconds: float = 300) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise SystemExit("that took too long")
        time.sleep(0.01)


def archive(home: Path, target: Path) -> None:
    for path in home.rglob("*"):
        if path.is_file() and path.suffix in TEXT_FILES:
            path.write_bytes(path.read_bytes().replace(str(home).encode(), PLACE.encode()))
    with tarfile.open(target, "w:xz", format=tarfile.PAX_FORMAT, preset=9) as tar:
        tar.add(home, arcname=".", filter=nobodys)


def nobodys(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    """Of the reports the page's alone, as pictures are large; nothing that others keep; nobody's name."""
    left = (".lock", "/lock", "/report.png", "work/whole.run/report.html", "sweep/1-tiny/002/report.html")
    if member.name.endswith(left) or "/matplotlib" in member.name:
        return None
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def main(target: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        maker = Maker(Path(folder).resolve() / "home")
        maker.inputs()
        maker.commands()
        maker.page()
        archive(maker.home, target)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
