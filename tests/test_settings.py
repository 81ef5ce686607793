"""Settings as dataclass fields: checks, forms and JSON come from the fields."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from sordino.errors import ConfigError
from sordino.settings import check_settings, form_of, from_json, seed_setting, setting, settings_of


@dataclass(frozen=True)
class Oven:
    heat: float = setting(180.0, "Degrees.", low=30, high=300, label="Heat")
    minutes: int | None = setting(None, "How long.", low=1, shown="by weight")
    mode: Literal["fan", "grill"] | Literal["auto"] = setting("auto", "Where the heat comes from.")
    light: bool = setting(False, "Switch the light on.")
    note: str = ""

    def __post_init__(self) -> None:
        check_settings(self)


def test_fields_say_kind_choices_and_flag() -> None:
    found = settings_of(Oven)
    assert list(found) == ["heat", "minutes", "mode", "light"]
    assert [each.kind for each in found.values()] == [float, int, str, bool]
    assert found["mode"].choices == ("fan", "grill", "auto")
    assert found["heat"].flag == "--heat"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"heat": 20.0}, "--heat: expected 30 to 300, got 20"),
        ({"heat": math.nan}, "--heat: expected 30 to 300, got nan"),
        ({"minutes": 0}, "--minutes: expected 1 or more, got 0"),
        ({"mode": "steam"}, "--mode: expected fan, grill, auto, got steam"),
    ],
)
def test_values_outside_range_or_choices_are_refused(values: dict[str, object], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Oven(**values)  # type: ignore[arg-type]
    for part in said.split(": ", 1)[1].split(", "):
        assert part.removeprefix("expected ").removeprefix("got ") in str(caught.value)
    assert said.split(":")[0] in str(caught.value)


def test_a_bound_may_be_left_out_of_the_range() -> None:
    @dataclass(frozen=True)
    class Draw:
        share: float = setting(0.5, "Share.", above=0, high=1)

        def __post_init__(self) -> None:
            check_settings(self)

    assert Draw(1.0).share == 1
    for value in (0.0, 1.1, math.nan):
        with pytest.raises(ConfigError, match="above 0, at most 1"):
            Draw(value)


def test_large_ranges_are_said_exactly_and_paths_are_a_kind() -> None:
    @dataclass(frozen=True)
    class Cellar:
        seed: int = seed_setting()
        plan: Path | None = setting(None, "Where it is drawn.")

        def __post_init__(self) -> None:
            check_settings(self)

    assert Cellar(2**63 - 1, Path("plan.png")).plan == Path("plan.png")
    with pytest.raises(ConfigError, match="expected 0 to 9223372036854775807, got 9223372036854775808"):
        Cellar(2**63)
    with pytest.raises(ConfigError, match="--plan: a setting is of the wrong type; expected a path"):
        Cellar(plan="plan.png")  # type: ignore[arg-type]


def test_json_with_an_unknown_key_is_refused() -> None:
    assert from_json(Oven, {"heat": 200.0, "note": "bread"}) == Oven(200.0, note="bread")
    with pytest.raises(ConfigError, match="heta"):
        from_json(Oven, {"heta": 200.0})


def test_a_form_has_what_a_page_needs() -> None:
    assert form_of(Oven)[0] == {
        "name": "heat", "kind": "float", "label": "Heat", "help": "Degrees.", "default": 180.0, "shown": "",
        "choices": [], "low": 30, "high": 300, "above": None,
    }  # fmt: skip


def test_a_setting_that_is_not_offered_is_checked_all_the_same() -> None:
    @dataclass(frozen=True)
    class Grill:
        depth: int = setting(1, "How deep.", low=1, offered=False)

    assert form_of(Grill) == []
    with pytest.raises(ConfigError, match="--depth"):
        check_settings(Grill(0))


def test_a_setting_of_several_values_is_checked_value_by_value() -> None:
    @dataclass(frozen=True)
    class Shelves:
        heights: tuple[int, ...] = setting((), "Where the trays go.", low=1, high=5, flag="--height")

        def __post_init__(self) -> None:
            check_settings(self)

    found = settings_of(Shelves)["heights"]
    assert (found.kind, found.several, found.flag) == (int, True, "--height")
    assert Shelves((1, 5)).heights == (1, 5)
    with pytest.raises(ConfigError, match=r"--height.*got 6"):
        Shelves((1, 6))


@pytest.mark.parametrize("value", ["180", True, (180,)])
def test_a_value_of_another_type_is_refused(value: object) -> None:
    with pytest.raises(ConfigError, match=r"--heat: a setting is of the wrong type; expected a number, got"):
        Oven(value)  # type: ignore[arg-type]
    assert Oven(200).heat == 200
