"""Chat, in a real browser: characters with pictures, names, greetings and lore; answers to choose from; chats in a list."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect

from tests.e2e.steps import NEEDED, WAIT, Server, fitting, held_answers, lamp, sent, shot

pytestmark = NEEDED


CARD = {
    "name": "Ada",
    "description": "{{char}} keeps a lighthouse.",
    "first_mes": "*She looks up.* You are wet, {{user}}.",
    "alternate_greetings": ["Who goes there, <USER>?"],
    "mes_example": "<START>\n{{user}}: Hello.\n{{char}}: Mind the step.",
    "character_book": {
        "entries": [
            {"content": "The lamp burns whale oil.", "keys": ["lamp"], "enabled": True},
            {"content": "Gulls bite.", "keys": ["gull"], "enabled": True},
            {"content": "Never.", "keys": ["/x+/"], "enabled": True},
        ]
    },
}


def card(folder: Path) -> Path:
    """A PNG as SillyTavern writes it, larger than the page keeps."""
    info = PngInfo()
    info.add_text("chara", base64.b64encode(json.dumps({"spec": "chara_card_v2", "data": CARD}).encode()).decode())
    content = io.BytesIO()
    Image.new("RGB", (400, 600), "teal").save(content, "PNG", pnginfo=info)
    path = folder / "ada.png"
    path.write_bytes(content.getvalue())
    return path


def stored(server: Server) -> list[dict[str, Any]]:
    chats = [one for one in httpx.get(f"{server.url}/ui/stories").json() if one["is_chat"]]
    return [httpx.get(f"{server.url}/ui/stories/{one['id']}").json() for one in chats]


def test_a_character_from_a_card(server: Server, page: Page, tmp_path: Path) -> None:
    """Their card said "You are wet, You", their picture was lost, and so were other greetings and the lorebook."""
    lamp(page, "blue")
    page.get_by_role("link", name="Chat", exact=True).click()
    expect(page.locator("#chat-empty")).to_be_visible()
    fitting(page)
    page.locator("#card").set_input_files(card(tmp_path))
    turns = page.locator("#turns article")
    expect(turns.first).to_contain_text("She looks up. You are wet, User.")
    expect(turns.first.locator("em")).to_have_text("She looks up.")
    # The name of whoever plays, in every text.
    page.locator("#who-open").click()
    page.get_by_label("Your name").fill("Bea")
    expect(turns.first).to_contain_text("You are wet, Bea.")
    expect(page.locator("#who-lore")).to_contain_text("3 entries")
    expect(page.locator("#who-lore")).to_contain_text("One is left out: its key is a pattern.")
    expect(page.locator("#who-system")).to_have_value(re.compile(r"You are \{\{char\}\}\."))
    fitting(page)
    shot(page, "character")
    page.locator("#who .fold").click()
    # Another greeting.
    turns.first.get_by_role("button", name="Next greeting").click()
    expect(turns.first).to_contain_text("Who goes there, Bea?")
    page.locator("#say-text").fill("I saw the lamp, {{char}}.")
    page.locator("#say-text").press("Enter")
    expect(turns).to_have_count(3)
    expect(turns.nth(1)).to_contain_text("I saw the lamp, Ada.")
    expect(page.locator("#chat-go")).to_be_visible(timeout=WAIT)
    system, *others = sent(page)["text"]["chat"]
    assert system["role"] == "system"
    assert "Ada keeps a lighthouse." in system["content"]
    assert "Examples of how Ada talks:\nBea: Hello.\nAda: Mind the step." in system["content"]
    assert system["content"].endswith("The lamp burns whale oil."), "and nothing about gulls"
    assert [one["content"] for one in others] == ["Who goes there, Bea?", "I saw the lamp, Ada."]
    # The picture is kept with the chat, small; a reload has all of it.
    expect(page.locator("#chat-saved")).to_have_text("saved")
    [chat] = stored(server)
    picture = Image.open(io.BytesIO(base64.b64decode(chat["character"]["avatar"].partition(",")[2])))
    assert picture.size == (171, 256)
    page.reload()
    expect(turns).to_have_count(3)
    expect(turns.first.locator("img.avatar")).to_be_visible()
    fitting(page)


def test_answers_to_choose_from(server: Server, page: Page) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Chat", exact=True).click()
    say, turns = page.locator("#say-text"), page.locator("#turns article")
    before = page.locator("#say").bounding_box()
    say.fill("Who\nare\nyou?")
    after = page.locator("#say").bounding_box()
    assert before is not None
    assert after is not None
    assert after["height"] > before["height"] + 20, "the composer grows with the text"
    with held_answers(page):
        say.press("Enter")
        expect(page.locator("#chat-stop")).to_be_visible()
        expect(turns.last.locator("p")).to_have_text("Reading the conversation ...")
    expect(page.locator("#chat-go")).to_be_visible(timeout=WAIT)
    expect(turns.last.locator("p")).not_to_contain_text("Reading the conversation")
    first = turns.last.locator("p").inner_text()
    with held_answers(page):
        turns.last.get_by_role("button", name="Retry").click()
        expect(page.locator("#chat-stop")).to_be_visible()
    expect(page.locator("#chat-go")).to_be_visible(timeout=WAIT)
    expect(turns).to_have_count(2)
    expect(turns.last).to_contain_text("2 / 2")
    second = turns.last.locator("p").inner_text()
    assert second != first
    turns.last.get_by_role("button", name="Previous answer").click()
    expect(turns.last.locator("p")).to_have_text(first)
    expect(turns.last.get_by_role("button", name="Previous answer")).to_be_disabled()
    expect(page.locator("#chat-saved")).to_have_text("saved")
    [chat] = stored(server)
    assert chat["chat"][-1]["content"] == chat["chat"][-1]["swipes"][0]
    assert len(chat["chat"][-1]["swipes"]) == 2
    # A retry that is stopped before a word keeps what was there; another chat is opened meanwhile.
    with held_answers(page):
        turns.last.get_by_role("button", name="Retry").click()
        page.locator("#chat-new").click()
        expect(turns).to_have_count(0)
    page.locator("#chats li").filter(has_not=page.locator("[aria-current]")).get_by_role("button").first.click()
    expect(turns).to_have_count(2)
    expect(turns.last).to_contain_text(re.compile(r"\d / [23]"))
    # From a turn on, all is deleted.
    turns.last.get_by_role("button", name="Actions").click()
    turns.last.get_by_role("button", name="Delete from here").click()
    turns.last.get_by_role("button", name="Really delete?").click()
    expect(turns).to_have_count(1)
    fitting(page)


def test_greetings_that_are_equal_and_chats_without_a_card(server: Server, page: Page, tmp_path: Path) -> None:
    lamp(page, "blue")
    page.get_by_role("link", name="Chat", exact=True).click()
    twice = {**CARD, "first_mes": "Good evening.", "alternate_greetings": ["Good evening.", "Mind the step."]}
    (tmp_path / "ada.json").write_text(json.dumps(twice))
    page.locator("#card").set_input_files(tmp_path / "ada.json")
    turns = page.locator("#turns article")
    expect(turns.first).to_contain_text("1 / 2")
    turns.first.get_by_role("button", name="Next greeting").press("Enter")
    expect(turns.first).to_contain_text("Mind the step.")
    # The pressed button is at its end: the focus is beside it.
    expect(turns.first.get_by_role("button", name="Previous greeting")).to_be_focused()
    expect(page.locator("#chat-meter")).to_contain_text("tokens")
    # A new chat has nothing of the old one, and is called by what is said first.
    page.locator("#chat-new").click()
    expect(page.locator("#chat-meter")).to_have_text("")
    page.locator("#say-text").fill("Who lights\nthe lamp when the keeper is away from the lighthouse?")
    named = page.locator("#chats").get_by_role("button", name="Who lights the lamp when the keeper is ...")
    with held_answers(page):
        page.locator("#say-text").press("Enter")
        expect(named).to_have_attribute("aria-current", "true")
        page.locator("#chat-stop").click()
    assert sent(page)["settings"]["max_tokens"] == 240
    # Answers may be longer than continuations, or shorter.
    page.locator("#who-open").click()
    page.get_by_label("Longest answer, in tokens").fill("12")
    page.get_by_label("Longest answer, in tokens").press("Tab")
    page.locator("#say-text").fill("Who?")
    page.locator("#say-text").press("Enter")
    expect(page.locator("#chat-go")).to_be_visible(timeout=WAIT)
    assert sent(page)["settings"]["max_tokens"] == 12
    expect(page.locator("#chat-meter")).to_contain_text("+ 12 to write")
    expect(page.locator("#chat-saved")).to_have_text("saved")
    page.reload()
    page.locator("#chat-new").click()
    expect(named).to_be_visible()
