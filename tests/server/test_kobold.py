"""KoboldAI's API as its clients of 2023 called it, and KoboldCpp's extras as today's do."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from sordino import formats
from sordino.engine.generate import TextRequest, complete
from sordino.engine.runners.torch_runner import TorchRunner
from sordino.engine.sampling import Sampling
from sordino.models.base_model import BaseModel
from sordino.server.kobold_fields import GenerateRequest, KoboldSettings, formatted
from sordino.server.serving import ServerLimits
from sordino.server.start import Models
from tests.server.ignored_fields import IGNORED, IGNORED_IN_STREAMS
from tests.server.running import NO_JSON, TEXT, Running, plainly, post, running, settle, voice
from tests.tiny_models import tiny_base
from tests.waiting import WAIT, until

JSON = {"Content-Type": "application/json"}
GREEDY = {"temperature": 0, "rep_pen": 1, "max_length": 10}


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Running]:
    with running(tmp_path, limits=ServerLimits(max_tokens=120)) as made:
        yield made


def get(live: Running, path: str) -> Any:
    answer = httpx.get(f"{live.url}{path}")
    assert answer.status_code == 200, answer.text
    return answer.json()


def put(live: Running, path: str, **body: Any) -> httpx.Response:
    return httpx.put(f"{live.url}{path}", json=body)


def written(live: Running, **body: Any) -> str:
    answer = post(live, "/api/v1/generate", **{"prompt": TEXT, **GREEDY, **body})
    assert answer.status_code == 200, answer.text
    (result,) = answer.json()["results"]
    assert set(result) == {"text"}
    return str(result["text"])


def exchanges(transcript: str) -> Iterator[tuple[str, str, str, int, Any]]:
    """(method, path, body, status, answer) of each."""
    lines = [line for line in transcript.splitlines() if line and not line.startswith("#")]
    for asked, told in zip(lines[::2], lines[1::2], strict=True):
        assert (asked[:2], told[:2]) == ("> ", "< ")
        method, path, *body = asked[2:].split(" ", 2)
        status, answer = told[2:].split(" ", 1)
        yield method, path, body[0] if body else "", int(status), json.loads(answer)


def test_the_written_sequence_of_a_2023_client(live: Running) -> None:
    """A replay: such a client itself is not to be had any more."""
    transcript = (Path(__file__).parent / "transcripts" / "kobold_2023.txt").read_text()
    said = {f"TEXT({name or ''})": plainly(live, name, max_tokens=10) for name in (None, "keeper", "clerk")}
    assert len(set(said.values())) == 3
    for method, path, body, status, answer in exchanges(transcript):
        if "results" in answer:
            answer["results"] = [{"text": said[answer["results"][0]["text"]]}]
        heard = httpx.request(method, f"{live.url}{path}", content=body, headers=JSON, timeout=30)
        assert (heard.status_code, heard.json()) == (status, answer), f"{method} {path} {body}"


def test_a_request_says_its_own_soft_prompt_or_none(live: Running) -> None:
    put(live, "/api/v1/config/soft_prompt", value="keeper.zip")
    assert written(live, soft_prompt="clerk.zip") == plainly(live, "clerk", max_tokens=10)
    assert written(live, soft_prompt="") == plainly(live, None, max_tokens=10)
    assert written(live, soft_prompt=" ") == plainly(live, None, max_tokens=10)
    assert written(live) == plainly(live, "keeper", max_tokens=10)


@pytest.mark.parametrize("name", ["nobody.zip", "wide.zip", "broken.zip", "../keeper.zip", "a\\b.zip"])
def test_a_wrong_name_is_said_as_koboldai_says_it(live: Running, name: str) -> None:
    said = {"soft_prompt": ["Must be a valid soft prompt name."]}
    answer = post(live, "/api/v1/generate", prompt=TEXT, soft_prompt=name)
    assert (answer.status_code, answer.json()) == (422, {"detail": said})
    answer = put(live, "/api/v1/config/soft_prompt", value=name)
    assert (answer.status_code, answer.json()) == (422, {"detail": {"value": said["soft_prompt"]}})
    assert get(live, "/api/v1/config/soft_prompt") == {"value": ""}


def test_a_text_that_is_too_long_loses_its_oldest_part(live: Running) -> None:
    """In front stand the soft prompt's four positions; ten are to be written."""
    text = "the sea and the lamp " * 60
    ids = live.base.encode(text)
    kept = live.base.decode(ids[-(100 - 10 - 4) :])
    assert live.base.encode(kept) == ids[-86:]
    assert written(live, prompt=text, max_context_length=100, soft_prompt="clerk.zip") == plainly(
        live, "clerk", kept, max_tokens=10
    )
    # More than the model has is as much as it has.
    assert len(written(live, prompt=text, max_context_length=100_000)) > 0


def test_settings_are_kept_for_requests_that_say_nothing(live: Running) -> None:
    assert get(live, "/api/v1/config/max_length") == {"value": 80}
    assert put(live, "/api/v1/config/max_length", value=3).json() == {}
    assert put(live, "/api/v1/config/temperature", value=0).json() == {}
    assert put(live, "/api/v1/config/rep_pen", value=1).json() == {}
    assert get(live, "/api/latest/config/max_length") == {"value": 3}
    answer = post(live, "/api/v1/generate", prompt=TEXT, max_length=None)
    assert answer.json()["results"] == [{"text": plainly(live, None, max_tokens=3)}]
    wrong = put(live, "/api/v1/config/max_length", value="many")
    assert wrong.status_code == 422
    assert list(wrong.json()["detail"]) == ["value"]
    # A default that no request may have would be refused in each that leaves it out.
    most = live.serving.limits.max_tokens
    wrong = put(live, "/api/v1/config/max_length", value=most + 1)
    assert (wrong.status_code, wrong.json()) == (422, {"detail": {"value": [f"Must be at most {most}."]}})
    assert httpx.get(f"{live.url}/api/v1/config/nothing").status_code == 422
    assert get(live, "/api/v1/config/max_length") == {"value": 3}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": "a", "n": 6}, "n"),
        ({"prompt": "a", "n": 0}, "n"),
        ({"prompt": "a", "max_length": 0}, "max_length"),
        ({"prompt": "a", "max_length": 121}, "max_length"),
        ({"prompt": "a", "max_length": 50, "max_context_length": 40}, "max_length"),
        ({"prompt": "a", "temperature": -1}, "temperature"),
        ({"prompt": "a", "top_p": 2}, "top_p"),
        ({"prompt": "a", "rep_pen": 0.5}, "rep_pen"),
        ({"prompt": "a", "sampler_order": [0, 1]}, "sampler_order"),
        ({"prompt": "a", "sampler_order": [0, 0, 1, 2, 3, 4, 5]}, "sampler_order"),
        ({"prompt": "a", "sampler_seed": -1}, "sampler_seed"),
        ({"prompt": "a", "stop_sequence": "x"}, "stop_sequence"),
    ],
)
def test_every_wrong_field_is_named_with_422(live: Running, body: dict[str, Any], field: str) -> None:
    answer = post(live, "/api/v1/generate", **body)
    assert answer.status_code == 422
    assert list(answer.json()["detail"]) == [field]
    assert all(isinstance(line, str) for line in answer.json()["detail"][field])


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/extra/generate/stream", "/api/extra/tokencount"])
def test_what_is_no_json_is_said_with_a_code_that_clients_know(live: Running, path: str) -> None:
    for body in NO_JSON:
        answer = httpx.post(f"{live.url}{path}", content=body, headers={"content-type": "application/json"})
        assert (answer.status_code, answer.json()["detail"]["msg"]) == (422, "the body is not JSON")


def test_half_a_character_to_count_names_the_field(live: Running) -> None:
    body, kind = b'{"prompt": "half \\ud800"}', {"content-type": "application/json"}
    answer = httpx.post(f"{live.url}/api/extra/tokencount", content=body, headers=kind)
    assert (answer.status_code, list(answer.json()["detail"])) == (422, ["prompt"])


def test_unknown_and_meaningless_fields_are_ignored(live: Running) -> None:
    assert written(live, nonsense=[1, 2], **dict.fromkeys(IGNORED, True)) == plainly(live, None, max_tokens=10)
    assert set(IGNORED_IN_STREAMS) < set(GenerateRequest.model_fields)
    assert not set(IGNORED) & set(GenerateRequest.model_fields)


def test_a_seed_gives_the_same_text_and_n_gives_different_ones(live: Running) -> None:
    ask = {"prompt": TEXT, "max_length": 10, "temperature": 1.5, "sampler_seed": 2**64 - 1, "n": 3}
    first, again = (post(live, "/api/v1/generate", **ask).json()["results"] for _ in range(2))
    assert first == again
    assert len({one["text"] for one in first}) > 1


def test_six_steps_of_the_order_leave_the_penalty_first(live: Running) -> None:
    order = [5, 0, 1, 2, 3, 4]
    ask = {"prompt": TEXT, "max_length": 10, "temperature": 1.5, "rep_pen": 1.5, "sampler_seed": 1}
    old = post(live, "/api/v1/generate", **ask, sampler_order=order).json()
    assert old == post(live, "/api/v1/generate", **ask, sampler_order=[6, *order]).json()


def test_extremes_keep_one_word(live: Running) -> None:
    for field in ("top_p", "typical", "tfs"):
        assert written(live, temperature=1, **{field: 0})


def test_stop_sequences_and_single_lines(live: Running) -> None:
    whole = plainly(live, None, max_tokens=40)
    stop = whole[4:6]
    assert written(live, max_length=40, stop_sequence=[stop]) == whole[: whole.index(stop)]
    assert "\n" not in written(live, max_length=40, singleline=True)


def test_output_formatting() -> None:
    text = 'He went. "Yes!" she said\n\n\nand #then'
    assert formatted(text, KoboldSettings()) == text
    assert formatted(text, KoboldSettings(frmttriminc=True)) == 'He went. "Yes!"'
    assert formatted(text, KoboldSettings(frmtrmblln=True)) == 'He went. "Yes!" she said\nand #then'
    assert formatted(text, KoboldSettings(frmtrmspch=True)).endswith("and then")
    assert formatted("no end", KoboldSettings(frmttriminc=True)) == "no end"


def test_changing_to_a_model_that_is_not_allowed_names_the_field(live: Running) -> None:
    assert put(live, "/api/v1/model", model="tiny-llama").json() == {}
    answer = put(live, "/api/v1/model", model="../secret")
    assert answer.status_code == 422
    assert "--other-model" in answer.json()["detail"]["model"][0]


def test_another_model_takes_over_and_the_old_one_finishes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = tiny_base("gpt2", dtype=torch.float32)
    limits = ServerLimits(max_tokens=120)
    with running(tmp_path, others={other.name: other}, limits=limits) as live:
        old = plainly(live, None, max_tokens=100)
        # It is still writing when the other model takes over.
        begun, over = threading.Event(), threading.Event()
        runner = live.serving.backend._engine.runner
        run, change = runner.run, Models.change

        def held(spans: Any) -> Any:
            begun.set()
            assert over.wait(WAIT)
            return run(spans)

        def changed(models: Models, name: str, announce: Any, **named: Any) -> None:
            def announced(new: Any) -> None:
                announce(new)
                over.set()

            change(models, name, announced, **named)

        monkeypatch.setattr(runner, "run", held)
        monkeypatch.setattr(Models, "change", changed)
        answers: list[str] = []
        thread = threading.Thread(target=lambda: answers.append(written(live, max_length=100)))
        thread.start()
        assert begun.wait(WAIT)
        assert put(live, "/api/v1/model", model=other.name).json() == {}
        thread.join(WAIT)
        assert answers == [old]
        assert get(live, "/api/v1/model") == {"result": other.id}
        assert get(live, "/v1/models")["data"][0]["id"] == other.name
        assert written(live) == complete(other, [TextRequest(TEXT, None)], Sampling(max_tokens=10, temperature=0))[0]
        # Soft prompts of the first model do not fit this one, and are not offered.
        assert get(live, "/api/v1/config/soft_prompts_list") == {"values": []}
        # What was counted before still counts.
        assert 'sordino_requests_total{api="kobold",reason="length"} 2.0' in httpx.get(f"{live.url}/metrics").text
        assert put(live, "/api/v1/model", model="a stranger's").status_code == 422
        # The first one may come back.
        assert put(live, "/api/v1/model", model="tiny-llama").json() == {}
        assert written(live, max_length=100) == old


def test_a_busy_server_says_503_as_koboldai(tmp_path: Path) -> None:
    with running(tmp_path, rows=1, queue=0) as live:
        assert post(live, "/api/v1/generate", prompt=TEXT, max_length=2).status_code == 200
        step = live.serving.backend._engine.step
        live.serving.backend._engine.step = lambda: (time.sleep(0.05), step())[1]  # type: ignore[method-assign]
        endless = {"model": "tiny-llama", "prompt": "a", "max_tokens": 100, "stream": True}
        endless |= {"logit_bias": {str(i): -100 for i in live.base.stop_ids}}
        with httpx.stream("POST", f"{live.url}/v1/completions", json=endless) as first:
            lines = first.iter_lines()
            next(lines)
            for route in ("/api/v1/generate", "/api/extra/generate/stream"):
                answer = post(live, route, prompt=TEXT)
                assert answer.status_code == 503
                assert answer.json()["detail"]["type"] == "service_unavailable"


def test_memory_for_rows_bounds_what_is_cut_and_told(tmp_path: Path) -> None:
    base = tiny_base("llama", dtype=torch.float32, max_position_embeddings=1024)
    with running(tmp_path, base, kv_bytes=_bytes_of_positions(base, 300)) as live:
        assert get(live, "/api/extra/true_max_context_length") == {"value": 256}
        assert written(live, prompt="the sea " * 300, max_context_length=2000) != ""
        answer = post(live, "/v1/completions", model="tiny-llama", prompt=[5] * 300, max_tokens=4)
        assert (answer.status_code, "256 positions" in answer.text) == (507, True)


def _bytes_of_positions(base: BaseModel, count: int) -> int:
    runner = TorchRunner(base, kv_bytes=1, prefix_bytes=0)
    return runner._key_values.shape.position_bytes * count


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", 1e-310),
        ("rep_pen_slope", 1e-17),
        ("rep_pen", 1e300),
        ("stop_sequence", [str(number) for number in range(300)]),
    ],
)
def test_numbers_beyond_arithmetic_are_refused_by_name(live: Running, field: str, value: Any) -> None:
    answer = post(live, "/api/v1/generate", prompt=TEXT, **{field: value})
    assert (answer.status_code, list(answer.json()["detail"])) == (422, [field])
    if field != "stop_sequence":
        assert put(live, f"/api/v1/config/{field}", value=value).status_code == 422
    assert written(live) == plainly(live, None, max_tokens=10)


def test_a_penalty_over_more_than_there_is_costs_nothing(live: Running) -> None:
    one = {"prompt": TEXT, "max_length": 10, "temperature": 0, "rep_pen": 1.3}
    assert post(live, "/api/v1/generate", **one, rep_pen_range=10**12).status_code == 200


def test_a_stream_that_ended_by_itself_says_so(live: Running) -> None:
    post(live, "/api/extra/generate/stream", prompt=TEXT, **GREEDY)
    assert get(live, "/api/extra/perf")["stop_reason"] == 0


def test_what_is_no_route_is_no_wrong_field(live: Running) -> None:
    nothing, method = httpx.get(f"{live.url}/api/v1/nothing"), httpx.delete(f"{live.url}/api/v1/model")
    assert (nothing.status_code, method.status_code) == (404, 405)
    assert "nothing at GET '/api/v1/nothing'" in nothing.json()["detail"]["msg"]
    assert "use GET" in method.json()["detail"]["msg"]


def test_a_default_that_cannot_be_remembered_is_none(tmp_path: Path) -> None:
    with running(tmp_path) as live:
        (tmp_path / "defaults.json").mkdir()
        answer = put(live, "/api/v1/config/soft_prompt", value="keeper.zip")
        assert answer.status_code == 507, answer.text
        assert str(tmp_path) not in answer.text
        assert get(live, "/api/v1/config/soft_prompt") == {"value": ""}


def test_the_document_says_which_fields_there_are(live: Running) -> None:
    paths = get(live, "/openapi.json")["paths"]
    for route in ("/api/v1/generate", "/api/extra/generate/stream"):
        schema = paths[route]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert set(GenerateRequest.model_fields) <= set(schema["properties"])


# KoboldCpp -----------------------------------------------------------------------------------------------------------

LONG = {"max_length": 120, "temperature": 1, "sampler_seed": 3, "rep_pen": 1}


def endless(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing ends a text, and every step takes a while."""
    engine = live.serving.backend._engine
    run = engine.runner.run

    def slow(spans: Any) -> Any:
        time.sleep(0.1)
        return run(spans)

    monkeypatch.setattr(engine.runner, "run", slow)
    monkeypatch.setattr(engine, "model", replace(engine.model, stop_ids=frozenset(), context_length=256))


def events(lines: Iterator[str]) -> Iterator[dict[str, Any]]:
    for line in lines:
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))
        else:
            assert line in ("", "event: message")


def test_a_stream_is_the_text_in_parts(live: Running) -> None:
    body = {"prompt": TEXT, **GREEDY}
    with httpx.stream("POST", f"{live.url}/api/extra/generate/stream", json=body) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        found = list(events(answer.iter_lines()))
    assert "".join(one["token"] for one in found) == plainly(live, None, max_tokens=10)
    assert [one["finish_reason"] for one in found[:-1]] == [None] * (len(found) - 1)
    assert found[-1]["finish_reason"] in ("length", "stop")


def test_check_and_abort_while_it_writes(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(live, monkeypatch)
    answers: list[httpx.Response] = []
    body = {"prompt": TEXT, **LONG, "genkey": "mine"}
    thread = threading.Thread(target=lambda: answers.append(post(live, "/api/v1/generate", **body)))
    thread.start()

    def so_far() -> str:
        return str(post(live, "/api/extra/generate/check", genkey="mine").json()["results"][0]["text"])

    until(lambda: len(so_far()) >= 3)
    part = so_far()
    assert post(live, "/api/extra/abort", genkey="another").json() == {"success": False}
    assert post(live, "/api/extra/abort", genkey="mine").json() == {"success": True}
    thread.join(WAIT)
    (answer,) = answers
    assert answer.status_code == 200
    assert answer.json()["results"][0]["text"].startswith(part)
    assert so_far() == ""
    assert post(live, "/api/extra/abort", genkey="mine").json() == {"success": False}
    settle(live)


def test_a_stream_can_be_aborted(live: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    endless(live, monkeypatch)
    found = []
    with httpx.stream("POST", f"{live.url}/api/extra/generate/stream", json={"prompt": TEXT, **LONG}) as answer:
        for count, event in enumerate(events(answer.iter_lines())):
            found.append(event)
            if count == 2:
                assert httpx.post(f"{live.url}/api/extra/abort").json() == {"success": True}
    assert found[-1]["finish_reason"] == "stop"
    settle(live)


@pytest.mark.parametrize("path", ["/api/v1/generate", "/api/extra/generate/stream"])
def test_a_client_that_leaves_frees_its_row(live: Running, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    endless(live, monkeypatch)
    timeout, before = httpx.Timeout(WAIT, read=0.3), live.left

    def leave() -> None:
        with httpx.stream("POST", f"{live.url}{path}", json={"prompt": TEXT, **LONG}, timeout=timeout) as answer:
            next(answer.iter_lines())
            raise httpx.ReadTimeout("seen enough")

    with pytest.raises(httpx.ReadTimeout):
        leave()
    settle(live)
    assert live.left == before + 1


def test_what_clients_ask_first(live: Running) -> None:
    assert get(live, "/api/extra/version")["result"] == "KoboldCpp"
    assert get(live, "/api/extra/true_max_context_length") == {"value": 256}
    assert get(live, "/api/extra/generate/check") == {"results": [{"text": ""}]}
    count = post(live, "/api/extra/tokencount", prompt=TEXT).json()
    assert count == {"value": len(live.base.encode(TEXT)), "ids": live.base.encode(TEXT)}
    assert get(live, "/api/extra/perf")["total_gens"] == 0
    written(live, sampler_seed=5)
    perf = get(live, "/api/extra/perf")
    assert (perf["total_gens"], perf["last_seed"], perf["idle"]) == (1, 5, 1)
    assert 1 <= perf["last_token_count"] <= 10


def test_a_new_file_is_in_the_list_at_once(live: Running) -> None:
    formats.write(voice(live.base, 7), live.folder / "new.zip")

    def names() -> list[str]:
        return [one["value"] for one in get(live, "/api/v1/config/soft_prompts_list")["values"]]

    until(lambda: "new.zip" in names())
    assert names() == ["clerk.zip", "keeper.zip", "new.zip"]
