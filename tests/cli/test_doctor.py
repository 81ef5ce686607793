"""`sordino doctor` finds what is amiss, says what to do, and its exit code tells."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from sordino.cli import main
from sordino.engine import installation
from sordino.models import files


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments], prog_name="sordino")


def findings(*arguments: str) -> dict[str, dict[str, str]]:
    return {finding["what"]: finding for finding in json.loads(run("--json", *arguments).stdout)}


def test_a_sound_installation_is_all_right(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    result = run()
    assert result.exit_code == 0, result.output
    for what in ("torch", "GPU", "memory", "cache", "model smollm2", "library"):
        assert what in result.stdout
    assert str(tmp_path / "library") in result.stdout


def test_json_holds_the_same_findings() -> None:
    found = findings()
    assert {"sordino", "torch", "GPU", "memory", "cache", "model smollm2", "library", "soft prompts"} <= set(found)
    assert {finding["state"] for finding in found.values()} <= {"ok", "note", "bad"}


def test_a_library_that_is_a_file_is_bad(tmp_path: Path) -> None:
    (tmp_path / "library").write_text("not a folder")
    result = run()
    assert result.exit_code == 1
    assert findings()["library"]["state"] == "bad"
    assert "--library" in result.stdout


def test_a_library_that_cannot_be_written_is_bad(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(dir: Path) -> None:
        raise PermissionError(13, "Permission denied", str(dir))

    monkeypatch.setattr(installation.tempfile, "TemporaryFile", refuse)
    found = findings()
    assert (found["library"]["state"], found["cache"]["state"]) == ("bad", "bad")
    assert "Permission denied" in found["library"]["found"]


def test_a_broken_file_is_named_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "library").mkdir()
    (tmp_path / "library" / "torn.zip").write_bytes(b"PK\x03\x04 and no more")
    listed = json.loads(run("--json").stdout)
    (note,) = [finding for finding in listed if "torn.zip" in finding["found"]]
    assert note["state"] == "note"
    assert run().exit_code == 0


def test_a_missing_model_is_noted_and_not_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SORDINO_CACHE", str(tmp_path / "nowhere"))
    found = findings()
    assert found["model smollm2"]["state"] == "note"
    assert not (tmp_path / "nowhere").exists()
    assert str(tmp_path / "nowhere") in found["cache"]["found"]


def test_every_bundled_model_is_reported() -> None:
    assert {f"model {name}" for name in files.BUNDLED} <= set(findings())
