"""Settings: unknown keys at any depth, every TOML type on the command line, no traceback ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field

from ontogeny.config import Settings, build, nearest, read_toml, with_changes
from ontogeny.errors import ConfigError
from ontogeny.suite import Suite, load_suite

SUITES = Path(__file__).parents[2] / "suites"
DEMO = (SUITES / "demo.toml").read_text(encoding="utf-8")


class Leaf(Settings):
    rate: float = 1.0
    names: tuple[str, ...] = ()


class Tree(Settings):
    leaf: Leaf = Leaf()
    maybe: Leaf | None = None
    leaves: tuple[Leaf, ...] = ()
    by_name: dict[str, Leaf] = Field(default_factory=dict)


@pytest.mark.parametrize(
    ("values", "place"),
    [
        ({"leaff": {}}, "leaff"),
        ({"leaf": {"rte": 1}}, "leaf.rte"),
        ({"maybe": {"rte": 1}}, "maybe.rte"),
        ({"leaves": [{}, {"rte": 1}]}, "leaves.1.rte"),
        ({"by_name": {"x": {"rte": 1}}}, "by_name.x.rte"),
    ],
)
def test_an_unknown_key_with_the_nearest(values: dict[str, Any], place: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build(Tree, values, "f.toml")
    known = "by_name, leaf, leaves, maybe" if place == "leaff" else "names, rate"
    meant = "leaf" if place == "leaff" else "rate"
    assert str(caught.value) == (
        f"f.toml: unknown key '{place}'; expected one of {known}; try: did you mean '{meant}'?"
    )


def test_an_unknown_key_that_is_near_to_nothing() -> None:
    with pytest.raises(ConfigError) as caught:
        build(Tree, {"leaf": {"zzzz": 1}}, "f.toml")
    assert str(caught.value) == "f.toml: unknown key 'leaf.zzzz'; expected one of names, rate"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["training.lerning_rate=1"], "'training.lerning_rate'.*did you mean 'learning_rate'"),
        (["text.planted.canaries=1"], "'text.planted.canaries'.*'canary_copies'"),
        (["sizes.2m.num_layer=1"], r"'sizes\.2m\.num_layer'.*did you mean 'num_layers'"),
        (["trainin.tokens=1"], "'trainin'.*did you mean 'training'"),
        (
            ["training.tokens=many"],
            "training.tokens: Input should be a valid integer; found 'many'",
        ),
        (["training.tokens=1.5"], "training.tokens.*found 1.5"),
        (["training.tokens=0"], "training.tokens: Input should be greater than or equal to 1"),
        (["order.seed=true"], "order.seed: Input should be a valid integer; found True"),
        (["order.seed=4294967296"], "order.seed.*less than 4294967296"),
        (["training.clip_norm=nan"], "not a setting"),
        (["order.seed=2020-01-01"], "not a setting"),
        (["recipe=python"], "recipe: Input should be 'pythia' or 'sound'; found 'python'"),
        (["name="], "name: "),
        (["members=[]"], "members: "),
    ],
)
def test_a_change_that_cannot_be(changes: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=rf"demo\.toml: .*{said}"):
        load_suite(SUITES / "demo.toml", changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("training", r"--set training: cannot read a change; expected key=value; found training"),
        ("=3", "cannot read a change"),
        ("", "cannot read a change"),
        ("name.x=3", "name is not a group of settings"),
        ("members.0=3", "members is not a group of settings"),
    ],
)
def test_a_change_that_cannot_be_read(change: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        load_suite(SUITES / "demo.toml", [change])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1_000", 1000),
        ("-2.5e-3", -2.5e-3),
        ("true", True),
        ('"a b"', "a b"),
        ("'3'", "3"),
        ("pythia", "pythia"),
        ("out/with space", "out/with space"),
        ("a=b", "a=b"),
        ("", ""),
        ("[1, 2]", [1, 2]),
        ('["1m"]', ["1m"]),
        ("{a = 1}", {"a": 1}),
        ("[1,", "[1,"),
        ("3\nother = 4", "3\nother = 4"),
        ("[" * 5000, "[" * 5000),
    ],
)
def test_a_change_takes_every_type(text: str, value: Any) -> None:
    before = {"a": {"b": 0, "kept": 1}, "list": [1]}
    assert with_changes(before, [f"a.b={text}"]) == {"a": {"b": value, "kept": 1}, "list": [1]}
    assert with_changes({}, [f" new.b = {text} "]) == {"new": {"b": value}}
    assert before == {"a": {"b": 0, "kept": 1}, "list": [1]}


def test_the_later_change_wins() -> None:
    assert with_changes({}, ["a=1", "a=2"]) == {"a": 2}


def test_a_suite_with_changes() -> None:
    changes = ["training.tokens=4096", "recipe=pythia", 'members=[{size=["70m"]}]', "text.seed=5"]
    suite = load_suite(SUITES / "demo.toml", changes)
    assert (suite.training.tokens, suite.recipe, suite.text.seed) == (4096, "pythia", 5)
    assert [member.name for member in suite.table()] == ["70m"]
    assert suite.text.components == load_suite(SUITES / "demo.toml").text.components


def test_what_is_resolved_builds_the_same() -> None:
    suite = load_suite(SUITES / "demo.toml")
    assert build(Suite, json.loads(json.dumps(suite.resolved())), "again") == suite


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    def said(path: Path) -> str:
        with pytest.raises(ConfigError) as caught:
            read_toml(path)
        return str(caught.value)

    broken, latin = tmp_path / "broken.toml", tmp_path / "latin.toml"
    broken.write_text('name = "x"\nsize = \n')
    latin.write_bytes('name = "é"'.encode("latin-1"))
    missing = tmp_path / "missing.toml"
    assert said(missing) == f"{missing}: no such file; expected a TOML file"
    assert said(tmp_path) == f"{tmp_path}: is a folder; expected a TOML file"
    assert "not valid TOML" in said(broken)
    assert "line 2" in said(broken)
    assert f"{latin}: not UTF-8 text" in said(latin)


@pytest.mark.parametrize(
    "text",
    [
        "a = " + "[" * 5000,
        "a = " + "{a=" * 5000,
        "a = " + "[" * 400 + "]" * 400,
        "a = " + "9" * 5000,
        "a = 2020-13-45",
        "created = 2020-01-01",
        "rate = nan",
        "rate = -inf",
        'name = "\\ud800"',
        "[training]\ntokens = 1e999",
    ],
)
def test_text_that_parsers_choke_on(tmp_path: Path, text: str) -> None:
    assert "suite.toml: " in refusal(tmp_path, text)


def refusal(folder: Path, text: str) -> str:
    path = folder / "suite.toml"
    path.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    with pytest.raises(ConfigError) as caught:
        load_suite(path, ["name=changed"])
    return str(caught.value)


@given(st.text(alphabet=st.characters(exclude_characters="\r")))
def test_random_text(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    assert "suite.toml: " in refusal(tmp_path_factory.getbasetemp(), text)


LINES = DEMO.splitlines()
VALUES = ["-1", "0", "1e400", "nan", '""', "[]", "{}", "[[1]]", "true", "2020-01-01", "9" * 30]
KEYS = ["size", "name", "num_heads", "tokens", "x", '""', "text", "sizes.2m"]


@st.composite
def damaged(draw: st.DrawFn) -> str:
    """The demo's file with a few lines lost, doubled, or given other keys and values."""
    lines = list(LINES)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, len(lines) - 1))
        key, equals, _value = lines[place].partition("=")
        change = draw(st.sampled_from(["drop", "double", "value", "key"]))
        if change == "drop":
            lines[place] = ""
        elif change == "double":
            lines.insert(place, lines[place])
        elif equals and change == "value":
            lines[place] = f"{key}= {draw(st.sampled_from(VALUES))}"
        elif equals:
            lines[place] = f"{draw(st.sampled_from(KEYS))} ={_value}"
    return "\n".join(lines)


@settings(max_examples=200)
@given(damaged())
def test_a_damaged_suite_is_a_suite_or_refused(
    tmp_path_factory: pytest.TempPathFactory, text: str
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.toml"
    path.write_text(text, encoding="utf-8")
    try:
        assert load_suite(path).table()
    except ConfigError:
        with pytest.raises(ConfigError, match=r"damaged\.toml: "):
            load_suite(path)


def test_nearest() -> None:
    assert nearest("num_layer", ["num_heads", "num_layers"]) == "did you mean 'num_layers'?"
    assert nearest("num_layer", []) is None
    assert nearest("zzz", ["num_heads"]) is None
