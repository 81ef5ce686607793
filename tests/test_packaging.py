"""What is around the package: images, a service of the system, the workflow that publishes it. Linted, and run as far as can be."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import yaml

from sordino import __version__
from sordino.server.addresses import Access
from tests.server.process import started
from tests.waiting import WAIT

REPOSITORY = Path(__file__).resolve().parents[1]
IMAGES = ("Dockerfile", "Dockerfile.cuda")
SERVICE = REPOSITORY / "packaging" / "sordino.service"


def program(name: str) -> str:
    """Beside the interpreter, or on PATH. Skips the test where it is in neither."""
    found = shutil.which(name, path=os.pathsep.join([sysconfig.get_path("scripts"), os.environ["PATH"]]))
    return found or pytest.skip(f"no {name} on this machine")


def instructions(image: str) -> list[str]:
    """Without comments, a continued one on one line."""
    text = (REPOSITORY / image).read_text(encoding="utf-8").replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line and not line.startswith("#")]


def values(image: str, instruction: str) -> list[str]:
    return [line.partition(" ")[2] for line in instructions(image) if line.startswith(f"{instruction} ")]


@pytest.mark.parametrize("image", IMAGES)
def test_the_linter_of_dockerfiles_has_nothing_to_say(image: str) -> None:
    command = [program("hadolint"), "--no-color", "--failure-threshold", "style", image]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_is_pinned_runs_as_nobody_and_keeps_its_files_in_volumes(image: str) -> None:
    assert len(values(image, "FROM")) == 2
    assert all(":" in base and "latest" not in base for base in values(image, "FROM"))
    installs = [line for line in values(image, "RUN") if "pip install" in line]
    assert len(installs) == 2
    assert all("--constraint constraints.txt" in line for line in installs)
    assert values(image, "USER") == ["10001"]
    assert json.loads(values(image, "VOLUME")[0]) == ["/library", "/data"]
    assert "SORDINO_LIBRARY=/library" in " ".join(values(image, "ENV"))
    assert values(image, "EXPOSE") == [str(Access().port)]
    # Without `--insecure`: it starts with a key only.
    assert json.loads(values(image, "CMD")[0]) == ["serve", "--host", "0.0.0.0"]


def test_the_two_images_differ_in_pytorch_and_what_a_gpu_needs_alone() -> None:
    ours, theirs = (set(instructions(image)) for image in IMAGES)
    differing = sorted(ours ^ theirs)
    assert [line.split()[0] for line in differing] == ["ENV", "ENV", "RUN", "RUN"]
    assert all("torch" in line for line in differing if line.startswith("RUN"))
    environments = sorted((line for line in differing if line.startswith("ENV")), key=len)
    assert environments[1].removeprefix(environments[0]).split() == [
        "NVIDIA_VISIBLE_DEVICES=all",
        "NVIDIA_DRIVER_CAPABILITIES=compute,utility",
    ]


def test_an_image_gets_what_it_copies_and_nothing_else() -> None:
    ignored = (REPOSITORY / ".dockerignore").read_text(encoding="utf-8").splitlines()
    let_in = {line[1:] for line in ignored if line.startswith("!")}
    assert "*" in ignored
    for image in IMAGES:
        copied = [line.split()[:-1] for line in values(image, "COPY") if "--from" not in line]
        assert {name for names in copied for name in names} == let_in
    assert all((REPOSITORY / name).exists() for name in let_in)


@pytest.mark.slow
def test_the_health_check_of_an_image_passes_on_a_server_and_fails_without_one(tmp_path: Path) -> None:
    (check,) = values("Dockerfile", "HEALTHCHECK")
    python, *arguments = json.loads(check.partition("CMD ")[2])
    assert python == "python"
    env = {"XDG_CONFIG_HOME": str(tmp_path), "SORDINO_LIBRARY": str(tmp_path), "SORDINO_API_KEY": "secret"}
    with started("--no-ui", "--port", "0", env=env) as process:
        port = process.url().rpartition(":")[2]
        command = [sys.executable, *(one.replace(str(Access().port), port) for one in arguments)]
        assert subprocess.run(command, capture_output=True, timeout=WAIT).returncode == 0
    assert subprocess.run(command, capture_output=True, timeout=WAIT).returncode != 0


def test_the_service_is_valid_and_closed() -> None:
    analyse = program("systemd-analyze")
    verified = subprocess.run([analyse, "verify", SERVICE], capture_output=True, text=True)
    faults = [line for line in verified.stderr.splitlines() if SERVICE.name in line]
    # The program is not installed where the service expects it.
    assert [line for line in faults if "/opt/sordino/bin/sordino is not executable" not in line] == []
    # Of 10 for a service that may do everything; below 2 systemd says OK.
    closed = [analyse, "security", "--offline=true", "--threshold=15", SERVICE]
    secured = subprocess.run(closed, capture_output=True, text=True)
    assert secured.returncode == 0, secured.stdout


def test_the_service_may_do_what_the_server_does() -> None:
    lines = SERVICE.read_text(encoding="utf-8").splitlines()
    settings = [line.partition("=")[::2] for line in lines if "=" in line and not line.startswith("#")]
    (command,) = (value for name, value in settings if name == "ExecStart")
    assert re.search(r"serve .*--host 127\.0\.0\.1", command)
    # PyTorch compiles while it runs, and psutil reads /proc/meminfo.
    assert {"MemoryDenyWriteExecute", "ProcSubset"} & {name for name, _ in settings} == set()


def test_the_workflow_that_publishes_has_no_token_and_builds_where_it_cannot_publish() -> None:
    text = (REPOSITORY / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    workflow = yaml.safe_load(text)
    build, publish = workflow["jobs"]["build"], workflow["jobs"]["publish"]
    # YAML reads `on` as true.
    assert workflow[True] == {"release": {"types": ["published"]}}
    assert "secrets." not in text
    assert workflow["permissions"] == {"contents": "read"}
    assert "permissions" not in build
    assert (publish["permissions"], publish["environment"]["name"]) == ({"id-token": "write"}, "pypi")
    # Nothing of this repository runs where PyPI's trust is.
    assert [step["uses"].partition("@")[0] for step in publish["steps"]] == [
        "actions/download-artifact",
        "pypa/gh-action-pypi-publish",
    ]


def test_the_workflow_that_publishes_compares_the_tag_with_the_version() -> None:
    text = (REPOSITORY / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8")
    (check,) = (step["run"] for step in yaml.safe_load(text)["jobs"]["build"]["steps"] if "tag" in step.get("name", ""))
    environment = {**os.environ, "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])}
    codes = [
        subprocess.run(["bash", "-c", check], cwd=REPOSITORY, env={**environment, "GITHUB_REF_NAME": tag}).returncode
        for tag in (f"v{__version__}", __version__, "v9.9.9")
    ]
    assert codes == [0, 1, 1]
