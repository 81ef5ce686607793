"""The page with an encoder-decoder, in a real browser over a tiny T5: input and output in Write, and what the other places say."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from playwright.sync_api import Page, expect

from tests.e2e.steps import NEEDED, choose, fitting, likeliest, new_tokens, sent, settings
from tests.server.running import Running, running
from tests.tiny_models import tiny_base

pytestmark = NEEDED

TEXT = "The keeper wrote of the sea and of the ship."


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """In place of the decoder that the other tests of the page have."""
    base = tiny_base("t5-1.1", dtype=torch.float32)
    with running(tmp_path_factory.mktemp("t5"), base, with_page=True) as one:
        yield one


def completed(server: Running, prompt: str) -> str:
    """The likeliest output, as another program gets it."""
    fields = {"model": f"{server.base.name}{prompt}", "prompt": TEXT, "max_tokens": 12, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/completions", json=fields, timeout=60).json()
    text: str = answer["choices"][0]["text"]
    return text


def generate(page: Page) -> str:
    page.locator("#go").click()
    expect(page.locator("#go")).to_be_enabled()
    return page.locator("#output").input_value()


def test_an_input_and_its_output(tiny: Running, tab: Page) -> None:
    field, output = tab.get_by_label("Input", exact=True), tab.get_by_label("Output", exact=True)
    expect(output).to_have_value("")
    expect(output).not_to_be_editable()
    expect(tab.get_by_role("button", name="Generate")).to_be_enabled()
    with settings(tab) as drawer:
        expect(drawer.locator("#memory")).to_be_visible()
        expect(drawer.locator("#note")).to_be_hidden()
    likeliest(tab)
    new_tokens(tab, 12)
    field.fill(TEXT)
    assert generate(tab) == completed(tiny, "")
    expect(field).to_have_value(TEXT)
    choose(tab, "keeper")
    assert generate(tab) == completed(tiny, ":keeper")
    # The output has a context of its own.
    expect(tab.locator("#meter")).to_have_text(
        f"{len(tiny.base.encode(TEXT))} tokens of text + 4 of the soft prompt, of 2048"
    )
    tab.locator("#undo").click()
    expect(output).to_have_value(completed(tiny, ""))
    tab.locator("#redo").click()
    expect(output).to_have_value(completed(tiny, ":keeper"))
    expect(tab.locator("#saved")).to_have_text("saved")
    tab.reload()
    expect(field).to_have_value(TEXT)
    expect(output).to_have_value(completed(tiny, ":keeper"))
    for width in (1280, 375):
        tab.set_viewport_size({"width": width, "height": 800})
        fitting(tab)


def test_retry_writes_another_and_stop_keeps_what_is_there(tab: Page) -> None:
    new_tokens(tab, 8)
    tab.locator("#story").fill(TEXT)
    output = tab.locator("#output")
    tab.locator("#go").press("Control+Enter")
    expect(tab.locator("#retry")).to_be_enabled()
    expect(output).not_to_have_value("")
    first = output.input_value()
    tab.locator("#story").press("Control+Shift+Enter")
    expect(output).not_to_have_value(first)
    # The input is what it was: an output is not behind it.
    assert sent(tab)["text"]["story"] == TEXT
    expect(tab.locator("#go")).to_be_enabled()
    likeliest(tab)
    new_tokens(tab, 2000)
    second = output.input_value()
    tab.locator("#go").click()
    expect(output).not_to_have_value(second)
    tab.locator("#stop").click()
    expect(tab.locator("#go")).to_be_enabled()
    assert output.input_value()
    assert tab.evaluate("() => window.sent.some((one) => one.do === 'stop')")


def test_compare_makes_a_column_the_output(tiny: Running, tab: Page) -> None:
    likeliest(tab)
    new_tokens(tab, 12)
    choose(tab, "keeper")
    tab.locator("#story").fill(TEXT)
    generate(tab)
    tab.locator("#compare-open").click()
    tab.locator("#compare-go").click()
    expect(tab.locator("#compare-go")).to_have_text("Compare again")
    columns = tab.locator("#columns article span")
    expect(columns).to_have_text([completed(tiny, ""), completed(tiny, ":keeper")], use_inner_text=False)
    tab.get_by_role("button", name="Use this one: No soft prompt").click()
    expect(tab.locator("#output")).to_have_value(completed(tiny, ""))
    expect(tab.locator("#write-status")).to_contain_text("This is the output now")
    tab.locator("#undo").click()
    expect(tab.locator("#output")).to_have_value(completed(tiny, ":keeper"))


def test_the_other_places_say_what_is_not_possible(tiny: Running, tab: Page) -> None:
    tab.goto(f"{tiny.url}/#chat")
    expect(tab.locator("#chat-cannot")).to_contain_text("It has no chat template, so it cannot chat.")
    expect(tab.locator("#say")).to_be_hidden()
    fitting(tab)
    tab.locator("#chat-cannot").get_by_role("link", name="Go to Write").click()
    expect(tab.locator("#output")).to_be_visible()
    tab.goto(f"{tiny.url}/#connect")
    expect(tab.locator("#programs").get_by_role("heading", name="KoboldAI Lite")).to_be_visible()
    expect(tab.locator("#programs").get_by_role("heading", name="Chat Completion")).to_have_count(0)
    expect(tab.locator("#programs-left")).to_contain_text("SillyTavern, Chat Completion; LangChain")
    tab.goto(f"{tiny.url}/#train")
    expect(tab.locator("select[name=train-kind] option[value=kv]")).to_be_disabled()
    expect(tab.locator("#texts-drop")).to_contain_text("Drop rows with a prompt and a completion here")
    tab.goto(f"{tiny.url}/#prompts/keeper")
    expect(tab.locator("#prompt")).to_contain_text("4 tokens of width 32")


def test_a_file_keeps_the_output(tab: Page, tmp_path: Path) -> None:
    path = tmp_path / "text.json"
    path.write_text(json.dumps({"title": "A text", "text": TEXT, "output": "of the lamp"}))
    tab.locator("#load").set_input_files(path)
    expect(tab.locator("#story")).to_have_value(TEXT)
    expect(tab.locator("#output")).to_have_value("of the lamp")


def test_another_kind_of_model_changes_the_page(tab: Page) -> None:
    change = """async (isPair) => {
        const { live } = await import("/ui/static/live.js");
        live.state = { ...live.state, model: { ...live.state.model, encoder_decoder: isPair } };
        live.dispatchEvent(new Event("state"));
    }"""
    tab.locator("#story").fill(TEXT)
    tab.evaluate(change, False)
    expect(tab.locator("#output")).to_be_hidden()
    expect(tab.get_by_role("button", name="Continue")).to_be_visible()
    expect(tab.get_by_label("Story", exact=True)).to_have_value(TEXT)
    tab.evaluate(change, True)
    expect(tab.locator("#output")).to_be_visible()
