"""Settings: strict, frozen, and clear about what was near."""

from __future__ import annotations

from typing import Literal

import pytest
from pydantic import ValidationError

from mmpeft.settings import ConfigError, Settings, nearest


class Inner(Settings):
    """A section."""

    rank: int = 4
    scale: float = 1.0
    bias: bool | None = None
    kind: Literal["none", "all"] = "none"


class Outer(Settings):
    """A configuration with a section."""

    inner: Inner = Inner()
    layers: Literal["all"] | tuple[int, ...] = "all"


def messages(**values: object) -> dict[str, str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(values)
    return {".".join(map(str, error["loc"])): error["msg"] for error in caught.value.errors()}


def test_unknown_key_names_the_nearest_at_every_level() -> None:
    found = messages(iner={}, inner={"rnk": 3, "zzz": 1})
    assert found["iner"] == "unknown key (did you mean 'inner'?)"
    assert found["inner.rnk"] == "unknown key (did you mean 'rank'?)"
    assert found["inner.zzz"] == "unknown key (one of: bias, kind, rank, scale)"


def test_unknown_option_names_the_nearest() -> None:
    assert messages(inner={"kind": "nonne"}) == {"inner.kind": "no such option (did you mean 'none'?)"}


@pytest.mark.parametrize("key", ["rank", "scale"])
def test_bool_is_no_number(key: str) -> None:
    assert "should not be a boolean" in messages(inner={key: True})[f"inner.{key}"]
    assert Inner(bias=True).bias is True


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "nan"])
def test_numbers_are_finite(value: object) -> None:
    assert "inner.scale" in messages(inner={"scale": value})


def test_settings_are_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Inner().rank = 5


def test_config_error_tells_every_problem() -> None:
    assert str(ConfigError("a.yaml", ["x", "y"])) == "a.yaml: 2 problems\n  x\n  y"


def test_nearest() -> None:
    assert nearest("lra", ["lora", "dora"]) == " (did you mean 'lora'?)"
    assert nearest("q", ["b", "a"]) == " (one of: a, b)"


def test_options_of_a_strangers_file_are_cut() -> None:
    assert nearest("image", ["[" * 100_000]) == f" (one of: {'[' * 97}...)"
    assert nearest("?", [f"{number:04d}" for number in range(1000)]).endswith("0099 and 900 more)")
    assert nearest("imag", ["image", "label"]) == " (did you mean 'image'?)"
