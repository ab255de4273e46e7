"""``list``: everything there is, each with what it says of itself."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from mmpeft.cli import main
from mmpeft.cli.shipped import configs, tasks
from mmpeft.methods import registry


@pytest.mark.parametrize(
    ("what", "names"),
    [("methods", registry), ("tasks", tasks), ("configs", configs)],
    ids=["methods", "tasks", "configs"],
)
def test_list_names_all_of_them(
    what: str, names: Callable[[], dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["list", what]) == 0
    lines = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines()[1:])
    assert list(lines) == sorted(names())
    assert all(len(text) > 10 for text in lines.values())


def test_list_models_names_the_embedded_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "models"]) == 0
    assert "tiny/vit" in capsys.readouterr().out
