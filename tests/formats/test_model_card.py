"""The model card beside an exported adapter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from sordino import formats
from sordino.formats.model_card import Claims, card, claims_of, is_edited
from sordino.prompts.soft_prompt import BaseRef, Metadata, SoftPrompt

FULL = Metadata(
    name='The "keeper"',
    author="A: B",
    description="Logs of a light.",
    base=BaseRef("org/tiny"),
    licence="cc0-1.0",
    tags=("log", "yes"),
)


def head(content: bytes) -> dict[str, object]:
    _, yaml_head, _ = content.decode().split("---\n", 2)
    found: dict[str, object] = yaml.safe_load(yaml_head)
    return found


def test_an_exported_folder_has_a_card_that_the_hub_reads(tmp_path: Path) -> None:
    formats.write(SoftPrompt(np.ones((3, 4), np.float32), FULL), tmp_path / "adapter", to="peft")
    content = (tmp_path / "adapter" / "README.md").read_bytes()
    prompt = SoftPrompt(np.ones((3, 4), np.float32), FULL)
    assert head(content) == {
        "sordino": {
            "name": 'The "keeper"',
            "description": "Logs of a light.",
            "kind": "embedding prompt",
            "tokens": 3,
            "content_sha256": prompt.content_hash,
            "base": {"d_model": 4},
        },
        "base_model": "org/tiny",
        "base_model_relation": "adapter",
        "library_name": "peft",
        "license": "cc0-1.0",
        "pipeline_tag": "text-generation",
        "tags": ["soft-prompt", "sordino", "peft", "log", "yes"],
    }
    assert '# The "keeper"' in content.decode()
    assert "3 virtual tokens by A: B" in content.decode()


def test_a_card_that_somebody_edited_is_a_document() -> None:
    own = card(SoftPrompt(np.ones((2, 4), np.float32), FULL))
    assert not is_edited(own)
    for edited in (b"Notes.", own.replace(b"light", b"lamp"), own + b"More.", b"", own.replace(b"<!--", b"")):
        assert is_edited(edited)


@pytest.mark.parametrize("metadata", [Metadata(), Metadata(name="x")])
def test_what_is_not_known_is_left_out(metadata: Metadata) -> None:
    own = card(SoftPrompt(np.ones((2, 4), np.float32), metadata))
    assert set(head(own)) == {"library_name", "pipeline_tag", "tags", "sordino"}


MEASURED = {
    "nll": {"soft_prompt": 3.25, "no_prompt": 3.75, "best_excerpt": 3.5},
    "gain_interval": [0.4, 0.6],
    "tokens": 1685,
    "worth_tokens": ">256",
    "gain_kept": {"256": 0.65},
    "off_domain": {"soft_prompt": 4.25, "no_prompt": 4.0},
}


def text_of(**known: object) -> str:
    prompt = SoftPrompt(np.ones((3, 4), np.float32), FULL).with_metadata(**known)
    return card(prompt, repository="ines/keeper").decode()


def test_the_text_says_what_the_file_says() -> None:
    text = text_of(
        heldout=MEASURED,
        training={"steps": 60, "init": "a | b"},
        placement="after_bos",
        base=BaseRef("org/tiny", fingerprint="f" * 64),
        samples=({"prompt": "At dusk", "without": "it was fine.", "with": "```\nthe lamp"},),
    )
    for part in (
        "Logs of a light.",
        "sordino install hf:ines/keeper",
        'PeftModel.from_pretrained(model, "ines/keeper")',
        "0.500 nats a token, 95 % interval 0.400 to 0.600 (3.750 without, 3.250 with over 1,685 tokens)",
        "the best excerpt of real text in its place: 3.500",
        "worth >256 tokens",
        "after 256 tokens of other text: 65%",
        "Damage on texts of other kinds: 0.250 nats a token",
        "| steps | 60 |",
        "| init | a \\| b |",
        "It was trained to stand after BOS. PEFT puts it before",
        "- placement: after BOS",
        f"- fingerprint of the base model's weights: {'f' * 64}",
        "Without:\n\n```text\nit was fine.\n```",
        # A fence of its own for text that holds one.
        "With:\n\n````text\n```\nthe lamp\n````",
    ):
        assert part in text, part


def test_what_was_not_measured_or_is_no_number_is_not_told() -> None:
    assert "Nothing: no held-out texts were given." in text_of()
    odd = {"nll": {"soft_prompt": "x", "no_prompt": True}, "gain_interval": 3, "off_domain": [1], "worth_tokens": 5}
    assert "Nothing: no held-out texts were given." in text_of(heldout=odd)
    assert "Damage on texts of other kinds: none" in text_of(heldout=MEASURED | {"off_domain": MEASURED["nll"]})


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0"}),
        ("Ask me: first", {"license": "other", "license_name": "Ask me: first"}),
        ("", {}),
    ],
)
def test_a_licence_is_one_that_the_hub_knows_or_other(licence: str, expected: dict[str, str]) -> None:
    found = head(card(SoftPrompt(np.ones((2, 4), np.float32), Metadata(licence=licence))))
    assert {key: value for key, value in found.items() if key.startswith("license")} == expected


@pytest.mark.parametrize("name", ["a.gguf", "my model", "x" * 200 + "/y", "gpt2"])
def test_what_is_no_name_on_the_hub_is_no_base_model_there(name: str) -> None:
    assert "base_model" not in head(card(SoftPrompt(np.ones((2, 4), np.float32), Metadata(base=BaseRef(name)))))


def test_a_card_is_read_back_by_us_and_by_the_hubs_own_classes() -> None:
    base = BaseRef("org/tiny", "llama", 4, 2, 100, fingerprint="f" * 64)
    prompt = SoftPrompt(np.ones((3, 4), np.float32), FULL).with_metadata(base=base, rating="mature", licence="My own")
    data = ModelCard(card(prompt, language="en").decode()).data.to_dict()
    claims = claims_of(data)
    assert data["language"] == "en"
    assert (claims.name, claims.base_model, claims.licence, claims.rating) == (
        FULL.name,
        "org/tiny",
        "My own",
        "mature",
    )
    assert (claims.kind, claims.n_tokens, claims.content_hash) == (prompt.kind, 3, prompt.content_hash)
    assert (claims.stated.metadata.base, claims.stated.d_model) == (base, 4)


@pytest.mark.parametrize(
    "value", [None, 3, "x", [1], {"base": 3, "kv": [1], "tokens": True}, {"base": {"d_model": -1}}]
)
def test_a_strangers_card_may_hold_anything(value: object) -> None:
    assert claims_of({"sordino": value, "base_model": value, "license": value}).n_tokens == 0
    assert claims_of({"sordino": value}) == Claims()
