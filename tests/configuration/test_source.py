"""YAML 1.2's core with line numbers."""

from __future__ import annotations

import pytest

from mmpeft.configuration.source import ConfigFile, parse


def read(text: str) -> ConfigFile:
    return parse(text, lambda line: f"f:{line}")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4), ("1e-3", 1e-3), ("1E5", 1e5), (".5", 0.5), ("-2.", -2.0), ("+7", 7), ("0", 0), ("1_000", 1000),
        ("010", "010"), ("no", "no"), ("yes", "yes"), ("on", "on"), ("off", "off"), ("y", "y"), ("true", True),
        ("False", False), ("null", None), ("~", None), ("", None),
        ("2020-01-01", "2020-01-01"), ("12:30:00", "12:30:00"),
        ("'3e-4'", "3e-4"), ("1e", "1e"), ("tiny/vit", "tiny/vit"), ("[1, a]", [1, "a"]),
    ],
)  # fmt: skip
def test_values(text: str, value: object) -> None:
    data = read(f"key: {text}").data["key"]
    assert data == value
    assert type(data) is type(value)


def test_origins_have_the_line_of_each_key() -> None:
    origins = read("a: 1\nb:\n  c:\n    - x\n    - {d: 2}\n").origins
    assert {key: origins[key] for key in ("a", "b", "b.c", "b.c.0", "b.c.1", "b.c.1.d")} == {
        "a": "f:1", "b": "f:2", "b.c": "f:3", "b.c.0": "f:4", "b.c.1": "f:5", "b.c.1.d": "f:5",
    }  # fmt: skip


def test_duplicate_keys_are_problems_and_the_first_stays() -> None:
    source = read("a: 1\nb: {c: 2, c: 3}\na: 4\n")
    assert source.problems == [
        "b.c (f:2): this key was already given (f:2)",
        "a (f:3): this key was already given (f:1)",
    ]
    assert source.data == {"a": 1, "b": {"c": 2}}


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a: 1\nb: [", "f:2: cannot be read"),
        ("a: 1\nb: &x 1\nc: *x", "f:3: cannot be read as YAML: aliases and tags"),
        ("a: &x [*x]", "f:1: cannot be read"),
        ("a: !!python/object/apply:os.system ['true']", "f:1: cannot be read"),
        ("a: !!python/name:os.system", "f:1: cannot be read"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_its_line(text: str, problem: str) -> None:
    source = read(text)
    assert len(source.problems) == 1
    assert source.problems[0].startswith(problem)
