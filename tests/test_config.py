from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, field_validator

from medseg.config import Config, apply_overrides, differences
from medseg.errors import ConfigError
from medseg.yaml_dialect import MAX_NESTING, read_yaml


class Net(Config):
    name: Literal["net"] = "net"
    channels: tuple[int, ...] = (8, 16)
    depth: int = Field(3, ge=1)


class Wide(Config):
    name: Literal["wide"] = "wide"
    width: int = 4


class Steps(Config):
    steps: int = 100
    learning_rate: float = 1e-2
    seed: int | None = None


class Run(Config):
    title: str = "untitled"
    train: Steps = Steps()
    model: Annotated[Net | Wide, Field(discriminator="name")] = Net()
    either: Net | Wide = Net()
    maybe: Net | None = None
    patch: int | tuple[int, int] = 64
    stages: tuple[Net, ...] = ()
    table: dict[str, Net] = Field(default_factory=dict)
    folder: Path = Path("runs")
    anything: Any = None

    @field_validator("title")
    @classmethod
    def _short(cls, value: str) -> str:
        if len(value) > 20:
            raise ValueError("expected at most 20 letters")
        return value


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "run.yaml"


def mistakes(file: Path, text: str, *overrides: str) -> str:
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        Run.load(file, *overrides)
    return str(caught.value)


def test_file_overrides_defaults(file: Path) -> None:
    file.write_text("train:\n  steps: 7\nmodel: {name: wide}\n", encoding="utf-8-sig")
    run = Run.load(file)
    assert run == Run(train=Steps(steps=7), model=Wide())
    assert run.train.learning_rate == 1e-2


@pytest.mark.parametrize("text", ["", "# only a comment\n", "null\n", "---\n"])
def test_an_empty_file_is_all_defaults(file: Path, text: str) -> None:
    file.write_text(text)
    assert Run.load(file) == Run()


def test_configs_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Run().title = "other"


def test_all_errors_at_once_with_path_value_and_nearest_key(file: Path) -> None:
    text = "titel: a\ntrain: {steps: many, lerning_rate: 1}\nmodel: {name: net, chanels: [1], depth: 0}\nstages: [{dept: 1}]"
    message = mistakes(file, text)
    lines = message.splitlines()
    assert lines[0] == f"{file}: 6 mistakes:"
    assert sorted(line.strip() for line in lines[1:]) == [
        "model.chanels: unknown key. Did you mean 'channels'? Found [1]. See line 3.",
        "model.depth: expected greater than or equal to 1: found 0. See line 3.",
        "stages.0.dept: unknown key. Did you mean 'depth'? Found 1.",
        "titel: unknown key. Did you mean 'title'? Found 'a'. See line 1.",
        "train.lerning_rate: unknown key. Did you mean 'learning_rate'? Found 1. See line 2.",
        "train.steps: expected a whole number: found 'many'. See line 2.",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("train: {xyzzy: 1}", "train.xyzzy: unknown key. Known keys: steps, learning_rate, seed."),
        ("maybe: {dept: 1}", "maybe.dept: unknown key. Did you mean 'depth'?"),
        ("table: {a: {dept: 1}}", "table.a.dept: unknown key. Did you mean 'depth'?"),
        ("train: 3", "train: expected a mapping: found 3."),
        ("train: null", "train: expected a mapping: found None."),
        ("train: {steps: 1.5}", "found 1.5."),
        ("train: {learning_rate: .nan}", "train.learning_rate: expected a finite number: found nan."),
        ("train: {learning_rate: .inf}", "found inf."),
        ("train: {learning_rate: 2020-01-01}", "found datetime.date(2020, 1, 1)."),
        ("title: aaaaaaaaaaaaaaaaaaaaaaaaa", "title: expected at most 20 letters: found 'aaaa"),
        ("title: 1e-3", "title: expected a string: found 0.001."),
        ("1: 2", "Keys should be strings: found 1."),
    ],
)
def test_one_error_is_one_line(file: Path, text: str, expected: str) -> None:
    message = mistakes(file, text)
    assert message.startswith(f"{file}: ")
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("model: {name: wide, widht: 1}", "model.widht: unknown key. Did you mean 'width'?"),
        ("model: {name: wide, depth: 1}", "model.depth: unknown key."),
        (
            "model: {name: wibe}",
            "'wibe' found using 'name' does not match any of the expected tags: 'net', 'wide'.",
        ),
        ("either: {widht: 1}", "either.widht: unknown key. Did you mean 'width'?"),
        ("either: {chanels: 1}", "either.chanels: unknown key. Did you mean 'channels'?"),
        ("either: {name: wide, width: x}", "either.width: expected a whole number"),
        ("either: 3", "either: expected a mapping: found 3."),
        ("patch: x", "patch: expected a whole number or a tuple: found 'x'."),
        ("patch: [1, x]", "patch.1: expected a whole number"),
    ],
)
def test_unions_report_the_branch_that_was_meant(file: Path, text: str, expected: str) -> None:
    message = mistakes(file, text)
    assert expected in message
    assert "mistakes" not in message
    assert ".Net" not in message
    assert ".wide" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("title: a\ntitle: b", "key 'title' occurs twice, line 2"),
        ("train:\n  steps: 1\n  steps: 2", "key 'steps' occurs twice, line 3"),
        ("anything: &x [1]\ntitle: *x", "aliases are not allowed, line 2"),
        ("anything: " + "[" * 40 + "]" * 40, f"nested deeper than {MAX_NESTING} levels"),
        ("anything: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        ("anything: !!python/object:os.system {}", "could not determine a constructor"),
        ("<<: {title: a}", "could not determine a constructor"),
        ("? [1]\n: 2", "a key must be a word or a number, line 1"),
        ("\ttitle: a", "line 1"),
        ("title: 'a", "line 1"),
        ("anything: 2020-13-45", "month must be in 1..12"),
        ("anything: !!float abc", "not valid YAML"),
        ("anything: !!bool x", "not valid YAML"),
        ("anything: !!int ''", "not valid YAML"),
        ("anything: !!map [1]", "not valid YAML"),
        ("title: \x00", "not valid YAML"),
        ("- 1\n- 2", "found a list, expected `key: value` lines"),
        ("words", "found a str, expected `key: value` lines"),
    ],
)
def test_broken_or_dangerous_yaml_is_refused(file: Path, text: str, expected: str) -> None:
    message = mistakes(file, text)
    assert message.startswith(f"{file}: ")
    assert expected in message


def test_an_alias_bomb_is_refused_at_once(file: Path) -> None:
    rows = ["a0: &a0 [x]"] + [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    assert "aliases are not allowed" in mistakes(file, "\n".join(rows))


def test_missing_and_binary_files(file: Path) -> None:
    file.write_text("{}")
    with pytest.raises(ConfigError, match=r"runn\.yaml: no such file\. Did you mean 'run\.yaml'\?"):
        read_yaml(file.with_name("runn.yaml"))
    with pytest.raises(ConfigError, match="no such file"):
        read_yaml(file.parent / "absent" / "run.yaml")
    file.write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_yaml(file)
    with pytest.raises(ConfigError, match="cannot be read as text"):
        read_yaml(file.parent)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("1E5", 1e5),
        ("-2.5e+3", -2500.0),
        (".5e1", 5.0),
        ("1.e2", 100.0),
        ("3", 3),
        ("3.5", 3.5),
    ],
)
def test_scientific_numbers_are_numbers(file: Path, text: str, value: float) -> None:
    file.write_text(f"train: {{learning_rate: {text}}}")
    assert Run.load(file).train.learning_rate == value
    assert apply_overrides({}, [f"a={text}"]) == {"a": value}


@pytest.mark.parametrize("text", ["1e", "e3", "1e-3x", "v1e3", "1e-3.5"])
def test_words_with_an_e_stay_words(text: str) -> None:
    assert apply_overrides({}, [f"a={text}"]) == {"a": text}


def test_overrides_win_in_order(file: Path) -> None:
    file.write_text("train: {steps: 1}\nmodel: {name: net, depth: 2}")
    run = Run.load(
        file, "train.steps=2", "train.steps=3", "model.channels=[1, 2]", "maybe.depth=5", "title=a=b"
    )
    assert (run.train.steps, run.title) == (3, "a=b")
    assert run.model == Net(channels=(1, 2), depth=2)
    assert run.maybe == Net(depth=5)


def test_overrides_do_not_change_their_input() -> None:
    values = {"a": {"b": [1]}}
    assert apply_overrides(values, ["a.c=2", "a.b=null"]) == {"a": {"b": None, "c": 2}}
    assert apply_overrides(values, ["a={d: 1}"]) == {"a": {"b": [1], "d": 1}}
    assert apply_overrides(values, ["a={}"]) == {"a": {}}
    assert values == {"a": {"b": [1]}}


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.steps", "override 'train.steps': expected key=value"),
        ("=3", "override '=3': expected key=value"),
        ("train..steps=3", "override 'train..steps=3': expected key=value"),
        (".steps=3", "expected key=value"),
        ("title.x=3", "override 'title.x=3': 'title' is a value, not a group"),
        ("title=[", "'[' is not a YAML value. Quote it"),
        ("title=2020-13-45", "is not a YAML value"),
        ("title=!!python/name:os.system", "is not a YAML value"),
        ("trian.steps=5", "trian: unknown key. Did you mean 'train'?"),
        ("train.stesp=5", "train.stesp: unknown key. Did you mean 'steps'?"),
    ],
)
def test_bad_overrides(file: Path, override: str, expected: str) -> None:
    assert expected in mistakes(file, "title: a", override)


def test_replace_validates() -> None:
    run = Run().replace(title="b", train={"steps": 5})
    assert (run.title, run.train.steps) == ("b", 5)
    assert Run().replace(model=Wide()).model == Wide()
    with pytest.raises(ConfigError, match=r"run: titel: unknown key\. Did you mean 'title'"):
        Run().replace(titel="b")


def reloaded(run: Run, file: Path) -> Run:
    file.write_text(run.to_yaml(), encoding="utf-8")
    return Run.load(file)


def test_resolved_yaml_round_trip(file: Path) -> None:
    shared = [1, 2]
    run = Run(
        train=Steps(learning_rate=1e-7, seed=0),
        model=Wide(),
        maybe=Net(),
        patch=(3, 4),
        stages=(Net(), Net(depth=1)),
        table={"a": Net()},
        folder=Path("a b/c"),
        anything={"twice": [shared, shared], "none": None},
    )
    assert reloaded(run, file) == run
    assert "channels: [8, 16]" in run.to_yaml()
    assert list(run.to_plain()) == list(Run.model_fields)


@pytest.mark.parametrize(
    "title", ["1e-3", "null", "true", "on", "1", "~", "0x10", "1:30", "- a", "a: b", "# b", " x", "é", ""]
)
def test_words_that_look_like_other_things_round_trip(file: Path, title: str) -> None:
    assert reloaded(Run(title=title), file).title == title


@settings(deadline=None, max_examples=60)
@given(
    st.text(st.characters(blacklist_categories=["Cs"]), max_size=20),
    st.floats(allow_nan=False, allow_infinity=False),
    st.integers(-(10**12), 10**12),
)
def test_any_value_round_trips(
    tmp_path_factory: pytest.TempPathFactory, title: str, rate: float, seed: int
) -> None:
    run = Run(title=title, train=Steps(learning_rate=rate, seed=seed))
    assert reloaded(run, tmp_path_factory.mktemp("config") / "run.yaml") == run


def test_differences_are_listed_by_field() -> None:
    one, other = Run.parse({"train": {"steps": 5}}), Run.parse({"train": {"steps": 6}, "title": "b"})
    told = differences(other, one)
    assert "train.steps: found 6, expected 5" in told
    assert "title: found 'b', expected" in told
    assert differences(one, one) == ""
    assert differences(other, one, most=1).endswith("; and 1 more")


def test_a_line_of_the_file_is_not_named_for_an_override(file: Path) -> None:
    file.write_text("title: a\ntrain: {steps: 1}\n")
    with pytest.raises(ConfigError, match=r"found 'many'\.$"):
        Run.load(file, "train.steps=many")


def test_a_file_that_is_too_large_for_a_configuration_is_refused_at_once(file: Path) -> None:
    file.write_text("a: 1\n" * 1_000_000)
    with pytest.raises(ConfigError, match=r"found 5,000,000 bytes, expected at most 4,194,304"):
        Run.load(file)
