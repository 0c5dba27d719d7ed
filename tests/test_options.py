"""Options live once, in dataclass fields: parsers, values, checks and the reference page follow from them."""

from __future__ import annotations

import runpy
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest

from q8trt.cli.main import COMMANDS, command_module
from q8trt.cli.parser import Parser
from q8trt.console.options import (
    SHARE,
    at_least,
    check_options,
    from_values,
    group,
    more_than,
    option,
    options_in,
    options_of,
    same_option,
)
from q8trt.errors import ConfigError

ROOT = Path(__file__).parents[1]


def pair(text: str) -> tuple[int, int]:
    first, _, second = text.partition("x")
    return int(first), int(second)


@dataclass(frozen=True)
class Oven:
    degrees: int = option(200, "temperature, degrees Celsius", values=at_least(50))
    fan: bool = option(True, "use the fan")
    humidity: float | None = option(None, "share of steam", values=SHARE, unset="none")
    size: tuple[int, int] = option((30, 40), "tray", metavar="WxH", read=pair, show=lambda size: f"{size[0]}x{size[1]}")
    mode: Literal["bake", "grill"] = option("bake", "mode")
    serial: str = "unknown"  # no option

    def __post_init__(self) -> None:
        check_options(self)


@dataclass(frozen=True)
class Topping:
    cheese: str = option(help="kind of cheese", missing="give mozzarella")
    grams: float = option(80.0, "weight, grams", flag="weight", values=more_than(0))


@dataclass(frozen=True)
class Party:
    guests: tuple[str, ...] = option((), "names", metavar="NAME")


@dataclass(frozen=True, kw_only=True)
class Pizza:
    name: str = option(help="name", positional=True, metavar="NAME")
    again: str | None = option(None, "bake an earlier one", bare="last")
    party: bool = option(False, "invite guests")
    spare: tuple[str, ...] = option((), "spare part", repeat=True)
    oven: Oven = group("oven", default=Oven(degrees=220))
    topping: Topping | None = group("topping", unset="a plain one")
    guests: Party | None = group("guests", needs="party")


@pytest.fixture
def parser() -> Parser:
    return Parser(Pizza, "pizza", "Bake.\n\nexample: pizza roma")


def test_values_from_the_command_line(parser: Parser) -> None:
    assert parser.read(["roma"]) == Pizza(
        name="roma", again=None, party=False, spare=(), oven=Oven(220), topping=None, guests=None
    )
    words = "roma --again --no_fan --size 10x20 --mode grill --cheese brie --weight 9.5 --spare a --spare b --party --guests x y"
    pizza = parser.read(words.split())
    assert pizza.oven == Oven(220, fan=False, size=(10, 20), mode="grill")
    assert pizza.topping == Topping("brie", 9.5)
    assert (pizza.again, pizza.spare, pizza.guests) == ("last", ("a", "b"), Party(("x", "y")))
    typed = parser.typed_options(["roma", "--fan"])
    assert from_values(Pizza, {"fan": False, "degrees": 90, **typed}).oven == Oven(90)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("roma --degree 1", "unknown argument '--degree' (did you mean '--degrees'?); see pizza --help"),
        ("roma --degrees warm", "argument --degrees: invalid int value: 'warm'; see pizza --help"),
        ("roma --degrees 49", "--degrees 49, expected 50 or more"),
        ("roma --humidity 1", "--humidity 1.0, expected from 0 to below 1"),
        ("roma --humidity nan", "--humidity nan, expected a finite number"),
        ("roma --weight 1", "--weight needs --cheese; or leave it out to use a plain one"),
        ("roma --guests x", "--guests needs --party"),
    ],
)
def test_refusals(words: str, message: str, parser: Parser) -> None:
    with pytest.raises(ConfigError) as caught:
        parser.read(words.split())
    assert str(caught.value) == message


def test_choices_are_checked_on_the_command_line_and_in_python(parser: Parser) -> None:
    with pytest.raises(ConfigError, match="argument --mode: invalid choice: 'bak'"):
        parser.read(["roma", "--mode", "bak"])
    with pytest.raises(ConfigError, match=r"^unknown --mode 'bak' \(did you mean 'bake'\?\); known: bake, grill$"):
        Oven(mode="bak")  # type: ignore[arg-type]


def test_from_values() -> None:
    assert from_values(Topping, {"cheese": "brie", "grams": 1.0}) == Topping("brie", 1.0)
    with pytest.raises(ConfigError, match=r"^--cheese is missing; give mozzarella$"):
        from_values(Topping, {})
    with pytest.raises(ConfigError, match=r"^unknown option 'gram' \(did you mean 'grams'\?\); known: cheese, grams$"):
        from_values(Topping, {"gram": 1})
    with pytest.raises(ConfigError, match="unknown option 'serial'"):
        from_values(Oven, {"serial": "7"})


def test_words_make_the_same_dataclass(parser: Parser) -> None:
    oven = Oven(90, fan=False, humidity=0.25, size=(1, 2))
    assert options_of(oven) == ["--degrees", "90", "--no_fan", "--humidity", "0.25", "--size", "1x2"]
    assert parser.read(["roma", *options_of(oven)]).oven == oven
    assert options_of(Topping("-soft-")) == ["--cheese=-soft-"]


def test_options_that_exclude_the_others(parser: Parser) -> None:
    typed = parser.typed_options(["roma", "--no_fan", "--party"])
    parser.check_alone(typed, {"name", "fan", "party"}, "never")
    with pytest.raises(ConfigError, match=r"^--party is enough; drop --no_fan$"):
        parser.check_alone(typed, {"name", "party"}, "--party is enough")


def test_help_shows_flags_defaults_and_groups(parser: Parser) -> None:
    text = " ".join(parser.format_help().split())
    assert "[--fan | --no_fan]" in text
    assert "--degrees N temperature, degrees Celsius (default: 200)" in text
    assert "--humidity N share of steam (default: none)" in text
    assert "--size WxH tray (default: 30x40)" in text
    assert "--mode {bake,grill} mode (default: bake)" in text
    assert "oven: --degrees" in text


def test_the_same_option_in_two_dataclasses() -> None:
    @dataclass(frozen=True)
    class Grill:
        degrees: int = same_option(Oven, "degrees", default=300)

    (degrees,) = options_in(Grill)
    assert (degrees.help, degrees.default) == ("temperature, degrees Celsius", 300)
    assert degrees.values
    assert degrees.values.text == "50 or more"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_a_help_text_and_is_declared_once(command: str) -> None:
    options = options_in(command_module(command).PARSER.options)
    names = [each.name for each in options]
    assert len(set(names)) == len(names)
    for each in options:
        assert each.help, each.name
        assert not each.help.endswith("."), each.help
        assert "(default" not in each.help, each.help


def test_the_reference_is_up_to_date() -> None:
    folder = ROOT / "docs" / "reference"
    pages = runpy.run_path(str(folder / "make.py"))["pages"]
    for name, page in pages().items():
        is_current = (folder / name).read_text(encoding="utf-8") == page
        assert is_current, f"docs/reference/{name} is out of date: run python docs/reference/make.py"
