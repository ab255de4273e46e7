"""Every shipped configuration says what it is and how to run it, and is valid for its task."""

from __future__ import annotations

import pytest

from mmpeft.cli.run import load_run
from mmpeft.cli.shipped import configs
from mmpeft.methods import registry


@pytest.mark.parametrize("name", configs())
def test_shipped_config(name: str) -> None:
    path = configs()[name]
    what, command = path.read_text().splitlines()[:2]
    assert what.startswith("# ")
    assert command.startswith(f"#   mmpeft train {name}")
    assert len(what) <= 120
    _, config, document = load_run(path, command.split()[4:])
    assert str(config.output) == f"runs/{path.stem}"
    assert "base" not in document.data


def test_every_method_has_an_embedded_config() -> None:
    used = {
        method.name
        for name, path in configs().items()
        if name.endswith(("_digits", "_scenes", "_tasks"))
        for method in load_run(path, [])[1].adapters["main"]
    }
    ours = {name for name, method in registry().items() if method.package() is None}
    assert used == ours - {"adapter_fusion"}  # it fuses adapters that are trained before
