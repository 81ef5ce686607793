"""Pushing to a stand-in for the Hub: what the repository holds afterwards, and what is refused before anything is sent."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import HfApi, ModelCard

from sordino import formats
from sordino.errors import BadInput, ConfigError, HubError
from sordino.library.hub import describe, fetch
from sordino.library.hub_names import HubReference
from sordino.library.hub_push import Pushed, PushSettings, prepared, push
from sordino.prompts.kv_prompt import KVPrompt, KVShape
from sordino.prompts.mixture import Mixture, StoredPrompt
from sordino.prompts.soft_prompt import Metadata, SoftPrompt
from tests.hub_repositories import KNOWN, keeper
from tests.hub_server import TOKEN, StandIn, killed_halfway, use

# The Hub's client itself sends large files in a way that its HTTP library calls old.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
NAME = "ines/keeper"
REPOSITORY = Path(__file__).parents[2]


def sent(prompt: StoredPrompt, folder: Path, name: str = NAME, **settings: Any) -> Pushed:
    path = (
        folder / f"keeper{'.mix' if isinstance(prompt, Mixture) else '.kv' if isinstance(prompt, KVPrompt) else ''}.zip"
    )
    formats.write_any(prompt, path, force=True)
    with prepared(path, name, PushSettings(**settings)) as ready:
        return push(ready)


def files(server: StandIn, name: str = NAME) -> dict[str, bytes]:
    repository = server.repositories[name]
    return repository.commits[repository.refs["main"]]


def was_written(server: StandIn) -> bool:
    return any("/commit/" in path or path == "/api/repos/create" for _, path in server.log)


def kv_prompt(**changes: Any) -> KVPrompt:
    shape = KVShape(2, 2, 4)
    flat = np.random.default_rng(0).standard_normal((3, shape.width)).astype(np.float32)
    return KVPrompt(flat, shape, np.zeros(0, np.float32), replace(KNOWN, **changes))


def test_a_repository_holds_the_adapter_the_zip_and_a_card(server: StandIn, tmp_path: Path) -> None:
    pushed = sent(keeper(), tmp_path, language="en")
    assert pushed == Pushed(f"{server.address}/{NAME}", server.repositories[NAME].refs["main"], True)
    assert not server.repositories[NAME].private
    found = files(server)
    names = ["README.md", "adapter_config.json", "adapter_model.safetensors", "keeper.zip", "sordino.json"]
    assert sorted(found) == names
    with zipfile.ZipFile(io.BytesIO(found["keeper.zip"])) as archive:
        assert archive.namelist() == ["tensor.npy", "meta.json"]
    head = ModelCard(found["README.md"].decode()).data.to_dict()
    ours = head.pop("sordino")
    assert head == {
        "base_model": "org/small",
        "base_model_relation": "adapter",
        "language": "en",
        "library_name": "peft",
        "license": "cc-by-4.0",
        "pipeline_tag": "text-generation",
        "tags": ["soft-prompt", "sordino", "peft", "sea"],
    }
    assert (ours["content_sha256"], ours["base"]["fingerprint"]) == (keeper().content_hash, "f" * 64)
    # And it comes back as it was.
    assert formats.read(fetch(describe(HubReference(NAME)))).metadata == keeper().metadata


def test_a_second_push_changes_what_changed_and_no_more(server: StandIn, tmp_path: Path) -> None:
    first = sent(keeper(), tmp_path)
    again = sent(keeper(), tmp_path)
    assert (again.commit, again.new) == (first.commit, False)
    changed = sent(keeper(), tmp_path, licence="MIT")
    assert (changed.new, len(server.repositories[NAME].commits)) == (True, 2)
    assert b'license: "mit"' in files(server)["README.md"]


def test_a_private_repository_and_a_report(server: StandIn, tmp_path: Path) -> None:
    (tmp_path / "r.html").write_text("<h1>Results</h1>")
    sent(keeper(), tmp_path, private=True, report=tmp_path / "r.html")
    assert server.repositories[NAME].private
    assert files(server)["report.html"] == b"<h1>Results</h1>"


def test_a_kv_prompt_is_pushed_as_an_adapter_too(server: StandIn, tmp_path: Path) -> None:
    sent(kv_prompt(), tmp_path)
    assert {"adapter_config.json", "keeper.kv.zip"} <= set(files(server))
    assert formats.read_single(fetch(describe(HubReference(NAME)))).content_hash == kv_prompt().content_hash
    assert describe(HubReference(NAME)).claims.stated.kv == KVShape(2, 2, 4)


@pytest.mark.parametrize(
    ("prompt", "name", "settings", "said"),
    [
        (keeper(), "keeper", {}, "expected USER/NAME"),
        (keeper(), "max/keeper", {}, "does not let this account write the repository.*HTTP 403"),
        (keeper(), NAME, {"language": "English"}, "no code of a language"),
        (keeper(), NAME, {"report": Path("nowhere.html")}, r"--report nowhere\.html: no such file"),
        (keeper(description="my key is hf_" + "a1B2" * 9), NAME, {}, "README.md.*looks like it holds an access token"),
        (keeper(training={"token": "hf_" + "a1B2" * 9}), NAME, {}, "access token"),
        (Mixture((keeper(1), keeper(2)), np.ones(2)), NAME, {}, "push its components"),
        (kv_prompt(placement="after_bos"), NAME, {}, "rotated for the positions after BOS"),
    ],
)
def test_what_cannot_be_pushed_is_refused_before_anything_is_sent(
    server: StandIn, tmp_path: Path, prompt: StoredPrompt, name: str, settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(BadInput, match=said):
        sent(prompt, tmp_path, name, **settings)
    assert server.repositories == {}


def test_a_push_needs_an_account_and_the_right_one(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, tmp_path / "home", monkeypatch, token=None)
    with pytest.raises(HubError, match=r"needs an account.*hf auth login"):
        sent(keeper(), tmp_path)
    wrong = "hf_" + "WrongToken" * 4
    use(server, tmp_path / "home", monkeypatch, token=wrong)
    with pytest.raises(HubError, match="refuses the access token") as refused:
        sent(keeper(), tmp_path)
    assert wrong not in str(refused.value)
    assert not was_written(server)


def test_somebodys_work_is_not_replaced(server: StandIn, tmp_path: Path) -> None:
    sent(keeper(), tmp_path)
    repository = server.repositories[NAME]
    edited = files(server) | {"README.md": files(server)["README.md"] + b"My own words."}
    for there, said in (
        (edited, r"got README\.md.*--overwrite"),
        (files(server) | {"other.zip": b"PK"}, r"got other\.zip.*--overwrite"),
        (files(server) | {"config.json": b"{}"}, "holds a model"),
    ):
        commit = repository.commit(there)
        with pytest.raises(BadInput, match=said):
            sent(keeper(3), tmp_path)
        assert repository.refs["main"] == commit
    repository.commit(edited | {"other.zip": b"PK", "notes.txt": b"mine"})
    sent(keeper(3), tmp_path, overwrite=True)
    assert {"notes.txt", "keeper.zip"} <= set(files(server))
    assert "other.zip" not in files(server)
    assert b"My own words" not in files(server)["README.md"]
    with pytest.raises(ConfigError, match="there already, and public"):
        sent(keeper(3), tmp_path, private=True)


def test_another_push_meanwhile_is_not_overwritten(server: StandIn, tmp_path: Path) -> None:
    sent(keeper(1), tmp_path)
    formats.write(keeper(2), tmp_path / "two.zip")
    with prepared(tmp_path / "two.zip", NAME, PushSettings(overwrite=True)) as ready:
        commit = server.repositories[NAME].commit(files(server) | {"notes.txt": b"meanwhile"})
        with pytest.raises(HubError, match="HTTP 412"):
            push(ready)
    assert server.repositories[NAME].refs["main"] == commit


def test_a_push_that_was_ended_behind_the_first_step_is_done_again(server: StandIn, tmp_path: Path) -> None:
    HfApi().create_repo(NAME)
    assert sent(keeper(), tmp_path).new
    assert "keeper.zip" in files(server)


def test_what_the_hub_says_of_a_card_is_shown(server: StandIn, tmp_path: Path) -> None:
    server.refused_licences = {"cc-by-4.0"}
    with pytest.raises(HubError, match=r'refuses the card.*"license" is not valid'):
        sent(keeper(), tmp_path)


def test_nothing_that_is_sent_or_written_holds_the_token(server: StandIn, tmp_path: Path) -> None:
    sent(keeper(), tmp_path)
    fetch(describe(HubReference(NAME)))
    written = [path for folder, _, names in os.walk(tmp_path) for path in (Path(folder, name) for name in names)]
    contents = [*server.bodies, *(path.read_bytes() for path in written if path.is_file())]
    assert len(contents) > 10
    assert not [content for content in contents if TOKEN.encode() in content]


@pytest.mark.slow
def test_a_killed_push_leaves_the_repository_as_it_was(server: StandIn, tmp_path: Path) -> None:
    first = sent(keeper(1), tmp_path)
    (tmp_path / "two").mkdir()
    formats.write(keeper(2), tmp_path / "two" / "keeper.zip")
    with killed_halfway(server, tmp_path / "home", "push", tmp_path / "two" / "keeper.zip", NAME, "--yes"):
        assert server.repositories[NAME].refs["main"] == first.commit
    assert formats.read(fetch(describe(HubReference(NAME)))).content_hash == keeper(2).content_hash


# In a process of its own, as the client's functions keep the address of the Hub that they were imported with.
PEFT = """
import sys
import numpy as np, torch
from peft import PeftModel
from tests.tiny_models import tiny_base

network = tiny_base("llama", dtype=torch.float32).network
ids, matrix = torch.tensor([[5, 6, 7]]), torch.from_numpy(np.load(sys.argv[2]))
with torch.no_grad():
    embeds = torch.cat([matrix[None], network.get_input_embeddings()(ids)], 1)
    ours = network(inputs_embeds=embeds).logits[0, -1]
    theirs = PeftModel.from_pretrained(network, sys.argv[1])(input_ids=ids).logits[0, -1]
print(float((ours - theirs).norm() / ours.norm()))
"""


@pytest.mark.slow
def test_peft_loads_what_was_pushed_by_its_name(server: StandIn, tmp_path: Path) -> None:
    from tests.tiny_models import tiny_base

    base = tiny_base("llama").ref
    made = np.random.default_rng(1).standard_normal((4, base.d_model)).astype(np.float32)
    np.save(tmp_path / "matrix.npy", made)
    sent(SoftPrompt(made, Metadata(name="Keeper", base=replace(base, id="org/small"))), tmp_path)
    command = [sys.executable, "-c", PEFT, NAME, str(tmp_path / "matrix.npy")]
    environment = server.environment(tmp_path / "home")
    done = subprocess.run(command, env=environment, cwd=REPOSITORY, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 1e-5
