"""What the page's controls do, in a real browser: settings, copying, filters, the keyboard; and that what files say stays text."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from playwright.sync_api import Page, expect

from sordino import formats
from sordino.prompts.soft_prompt import SoftPrompt
from tests.e2e.steps import (
    NEEDED,
    PROMPTS,
    WAIT,
    Server,
    choose,
    fitting,
    lamp,
    likeliest,
    new_tokens,
    prompt_row,
    sent,
    shot,
)

pytestmark = NEEDED


def test_presets_and_settings_are_what_is_asked_for(page: Page) -> None:
    lamp(page, "blue")
    story, go = page.locator("#story"), page.get_by_role("button", name="Continue")

    def written() -> str:
        story.fill("The wind")
        go.click()
        expect(story).not_to_have_value("The wind", timeout=WAIT)
        expect(go).to_be_enabled(timeout=WAIT)
        return story.input_value()

    page.locator("#settings-open").click()
    labels = ("New tokens", "Temperature", "Top-p", "Top-k")
    fields = {label: page.get_by_label(label, exact=True) for label in labels}
    fields["New tokens"].fill("12")
    fields["New tokens"].press("Tab")
    page.get_by_label("Preset").select_option("Careful")
    expect(fields["Temperature"]).to_have_value("0.5")
    expect(fields["Top-k"]).to_have_value("40")
    # A preset is how tokens are drawn, and not how many.
    expect(fields["New tokens"]).to_have_value("12")
    written()
    assert sent(page)["settings"] == {
        "max_tokens": 12, "temperature": 0.5, "top_p": 0.9, "top_k": 40, "min_p": 0, "typical": 1,
        "repetition_penalty": 1.05, "repetition_range": 0,
        "dry_multiplier": 0, "xtc_probability": 0, "xtc_threshold": 0.1, "dynatemp_range": 0, "smoothing_factor": 0,
    }  # fmt: skip
    # A value of one's own is no preset any more; one that cannot be becomes the nearest that can. A reload keeps them.
    fields["Temperature"].fill("99")
    fields["Temperature"].press("Tab")
    expect(fields["Temperature"]).to_have_value("3")
    expect(page.locator("#preset option:checked")).to_have_text("Your own")
    page.reload()
    lamp(page, "blue")
    expect(fields["Temperature"]).to_have_value("3")
    # The likeliest tokens are the same each time.
    page.get_by_label("Preset").select_option("Always the likeliest")
    assert written() == written()
    settings = sent(page)["settings"]
    assert (settings["temperature"], settings["max_tokens"]) == (0, 12)


def test_what_is_copied(server: Server, page: Page) -> None:
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    clipboard = "() => navigator.clipboard.readText()"
    page.get_by_role("link", name="Prompts", exact=True).click()
    # The folder: shown in short, and copied so that any program finds it.
    expect(page.locator("#folder code")).to_have_text("~/.local/share/sordino/soft_prompts")
    copy = page.locator("#folder").get_by_role("button")
    copy.click()
    expect(copy).to_have_text("Copied")
    assert page.evaluate(clipboard) == str(server.library.resolve())
    expect(copy).to_have_text("Copy")
    page.get_by_role("link", name="Connect", exact=True).click()
    addresses = page.locator("#addresses > div:has(button)")
    expect(addresses).to_have_count(4)
    for line, address in zip(addresses.all()[:3], ("/v1", "/api", ""), strict=True):
        line.get_by_role("button").click()
        expect(line.get_by_role("button")).to_have_text("Copied")
        assert page.evaluate(clipboard) == server.url + address
    # Where the browser keeps the clipboard to itself, as on a page that came over plain HTTP from elsewhere.
    page.evaluate("() => Object.defineProperty(navigator, 'clipboard', { value: undefined })")
    line.get_by_role("button").click()
    expect(line.get_by_role("button")).to_have_text("Select it and copy")


def test_what_a_file_says_about_itself_is_text(server: Server, page: Page) -> None:
    """Names, descriptions and samples are anybody's. What is active here may be chosen on another tab."""
    hostile = "<img src=x onerror='window.hit = 1'><script>window.hit = 1</script>"
    known = formats.read(Path(str(PROMPTS.joinpath("keeper.zip"))))
    samples = ({"prompt": hostile, "with": hostile, "without": hostile},)
    said = replace(
        known.metadata, name=hostile, author=hostile, description=hostile, licence=hostile, tags=(hostile,),
        samples=samples, training={"data": hostile},
    )  # fmt: skip
    formats.write(SoftPrompt(known.matrix, said), server.library / "hostile.zip")
    (server.library / "damaged.zip").write_bytes(b"PK nothing")
    lamp(page, "blue")
    page.get_by_role("link", name="Prompts", exact=True).click()
    row = prompt_row(page, "hostile.zip")
    expect(row).to_contain_text(hostile)
    # The menu of a broken file stands where every other does.
    ends = "(all) => all.map((one) => Math.round(one.getBoundingClientRect().right))"
    for width in (1280, 768, 375):
        page.set_viewport_size({"width": width, "height": 900})
        at = page.locator("#rows .do").evaluate_all(ends)
        assert len(at) == 2
        assert len(set(at)) == 1, (width, at)
    page.set_viewport_size({"width": 1100, "height": 900})
    # Filters.
    page.locator("#filter").select_option("broken")
    expect(row).to_be_hidden()
    expect(prompt_row(page, "damaged.zip")).to_be_visible()
    page.locator("#filter").select_option("fits")
    expect(prompt_row(page, "damaged.zip")).to_be_hidden()
    row.get_by_role("button", name=re.compile("^Load")).click()
    lamp(page, "green")
    expect(page.locator("#lamp-text")).to_contain_text(hostile)
    row.get_by_role("link", name=hostile).click()
    expect(page.locator("#prompt h2")).to_have_text(hostile)
    expect(page.locator("#prompt .sample").first).to_contain_text(hostile)
    expect(page.locator(".words span").nth(7)).to_be_visible(timeout=WAIT)
    page.go_back()
    row.get_by_role("button", name=re.compile("^Unload")).click()
    lamp(page, "blue")
    # Another tab of the window sets the server's default; this one follows it from now on.
    other = page.context.new_page()
    other.goto(f"{server.url}/#connect")
    other.locator("#connect-choice").click()
    other.locator("#connect-choice-list input[value=hostile]").check()
    expect(other.locator("#connect-choice")).to_have_text(hostile)
    expect(page.locator("#choices input").first).to_have_value("/default")
    choose(page, "/default")
    lamp(page, "green")
    # A tab begins with what was chosen last.
    other.reload()
    lamp(other, "green")
    expect(other.locator("#graphs svg")).to_have_count(4)
    page.get_by_role("link", name="Write", exact=True).click()
    page.locator("#compare-open").click()
    expect(page.locator("#columns-choice")).to_contain_text(hostile)
    for tab in (page, other):
        assert tab.evaluate("() => window.hit") is None


def test_by_the_keyboard_alone(server: Server, page: Page) -> None:
    server.add("keeper")
    lamp(page, "blue")
    expect(page.locator("#choices input[value=keeper]")).to_have_count(1)
    # Each thing that can be used is reached by Tab, in turn, and shows that it has the focus.
    usable = """() => [...document.querySelectorAll("a[href], button, input, select, textarea, summary, [tabindex='0']")]
        .filter((one) => !one.disabled && one.checkVisibility({ visibilityProperty: true }) && !one.closest("dialog"))"""
    for name in ("write", "chat", "prompts", "train", "connect"):
        page.goto(f"{server.url}/#{name}")
        page.reload()
        lamp(page, "blue")
        expect(page.locator(f"#{name}")).to_be_visible()
        page.evaluate(f"() => {{ window.left = new Set(({usable})()); window.dull = []; }}")
        for _ in range(page.evaluate("() => window.left.size") + 5):
            page.keyboard.press("Tab")
            page.evaluate("""() => {
                const one = document.activeElement;
                window.left.delete(one);
                const ring = getComputedStyle(one.type === "file" ? one.parentElement : one).outlineStyle;
                if (one !== document.body && ring === "none") window.dull.push(one.outerHTML);
            }""")
        assert page.evaluate("() => [...window.left].map((one) => one.outerHTML)") == [], name
        assert page.evaluate("() => window.dull") == [], name
    # A text is begun, continued and stopped.
    page.goto(f"{server.url}/#write")
    likeliest(page)
    new_tokens(page, 1000)
    page.locator("#story").focus()
    page.keyboard.type("The keeper")
    page.keyboard.press("Control+Enter")
    expect(page.get_by_role("button", name="Stop", exact=True)).to_be_enabled()
    page.wait_for_function("() => document.querySelector('#story').value.length > 20", timeout=WAIT)
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Continue")).to_be_enabled()
    # A dialog takes the focus, closes by Escape, and gives it back.
    page.locator("#model-open").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#models")).to_be_visible()
    assert page.evaluate("() => document.activeElement.closest('dialog')?.id") == "models"
    page.keyboard.press("Escape")
    expect(page.locator("#models")).to_be_hidden()
    assert page.evaluate("() => document.activeElement.id") == "model-open"


def test_a_look_inside_a_soft_prompt(server: Server, page: Page) -> None:
    server.add("keeper", "village-gazette")
    page.get_by_role("link", name="Prompts", exact=True).click()
    page.get_by_role("link", name="Keeper's log").click()
    norms = page.get_by_role("img", name=re.compile("^Norms of 20 virtual tokens"))
    expect(norms).to_be_visible()
    expect(norms.locator("rect.bar-above")).to_have_count(20)
    expect(page.locator("#prompt")).to_contain_text("Most similar in the library: village-gazette")
    page.get_by_role("button", name="Measure importance and attention").click()
    expect(page.get_by_role("img", name=re.compile("^Text positions give the prompt"))).to_be_visible(timeout=WAIT)
    expect(page.locator("#prompt .bars")).to_have_count(3)
    fitting(page)
    page.get_by_text("Importance and attention of each virtual token, in numbers").click()
    expect(page.get_by_role("columnheader", name="loss if left out")).to_be_visible()
    norms.scroll_into_view_if_needed()
    shot(page, "inside-page")
