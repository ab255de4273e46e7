"""Packages of strangers: a broken one is a warning that names it, one that is gone is named, and none takes a name."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from installing import write_metadata
from torch import nn

import mmpeft
from mmpeft import formats
from mmpeft.anatomies import Anatomy, Tower
from mmpeft.anatomies import reading as anatomies
from mmpeft.cli.run import finished
from mmpeft.methods import base as methods
from mmpeft.settings import ConfigError


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Give a folder of installed packages; what is written there is seen as if the process had just begun."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setattr(methods, "_METHODS", dict(methods._METHODS))
    monkeypatch.setattr(anatomies, "_REGISTERED", {})
    caches = methods._load_plugins, anatomies._installed, formats.external_formats
    for cache in caches:
        cache.cache_clear()
    yield folder
    for cache in caches:
        cache.cache_clear()


def package(site: Path, module: str, text: str, **groups: dict[str, str]) -> None:
    """Install a package ``strange-MODULE`` of one module."""
    (site / f"{module}.py").write_text(text)
    named = {f"mmpeft.{group}": points for group, points in groups.items()}
    write_metadata(site, f"strange-{module.replace('_', '-')}", "0.3", named)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("import nowhere_to_be_found", "ModuleNotFoundError: No module named 'nowhere_to_be_found'"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "SystemExit: 3"),
        ("import mmpeft\nclass Thing(mmpeft.LoRA): name = 'thing'\n1 / 0", "ZeroDivisionError"),
        ("def Thing(): return", "is no subclass of mmpeft.Method with a name"),
        ("import mmpeft\nclass Thing(mmpeft.LoRA): name = 'dora'", "'dora' is the name of mmpeft.methods.lora.DoRA"),
    ],
)
def test_a_broken_method_is_a_warning_that_names_its_package(site: Path, text: str, problem: str) -> None:
    package(site, f"broken_method_{len(text)}", text, methods={"thing": f"broken_method_{len(text)}:Thing"})
    with pytest.warns(UserWarning, match=r"'thing' of the installed package strange-broken-method-\d+ 0.3 .*") as seen:
        known = mmpeft.methods()
    assert problem in str(seen[0].message)
    assert "thing" not in known and known["dora"] is mmpeft.DoRA
    assert mmpeft.methods() == known


@pytest.mark.parametrize(("text", "problem"), [("import nowhere_to_be_found", "nowhere"), ("read = 3", "is no reader")])
def test_a_broken_library_is_a_warning_that_names_its_package(site: Path, text: str, problem: str) -> None:
    name = f"broken_library_{len(text)}"
    package(site, name, text, anatomies={"thing": name})
    with pytest.warns(UserWarning, match=r"'thing' of the installed package strange-broken-library-\d+ 0.3") as seen:
        assert mmpeft.anatomy(nn.Sequential(nn.Linear(2, 2))).library == "generic"
    assert problem in str(seen[0].message)


READER = """
from mmpeft.anatomies import Anatomy, AttentionSite, Tower

def read(model):
    return Anatomy(model, "strange", (Tower("all", 1, ()),)) if hasattr(model, "strange") else None
"""


def read(model: nn.Module) -> Anatomy | None:
    """Know what this package knows too."""
    return Anatomy(model, "here", (Tower("all", 1, ()),)) if hasattr(model, "strange") else None


def test_readers_are_asked_in_order(site: Path) -> None:
    """A reader of the program, one of an installed package, ours, and the generic one last."""
    package(site, "strange_reader", READER, anatomies={"strange": "strange_reader:read"})
    model: Any = nn.Sequential(nn.Linear(2, 2))
    assert mmpeft.anatomy(model).library == "generic"
    model.strange = True
    assert mmpeft.anatomy(model).library == "strange"
    assert mmpeft.register_reader(read) is read
    assert mmpeft.anatomy(model).library == "here"


def test_a_library_says_where_it_attends(site: Path) -> None:
    from mmpeft.anatomies import AttentionSite

    class Attend(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.scaled_dot_product_attention(x, x, x)

    def attention(model: nn.Module, path: str, module: nn.Module) -> AttentionSite | None:
        known = isinstance(module, Attend)
        return AttentionSite(name="attn.kernel", path=path, host=module, host_path=path) if known else None

    model = nn.Sequential(Attend())
    with pytest.raises(ValueError, match="no attention by a kernel that can be chosen"):
        mmpeft.use_attention(model, "math")
    mmpeft.register_reader(lambda model: None, attention=attention)
    x = torch.randn(1, 2, 3, 4)
    expected = model(x)
    with mmpeft.use_attention(model, "math"):
        torch.testing.assert_close(model(x), expected)


METHOD = """
import mmpeft

class Strange(mmpeft.LoRA):
    name = "strange"
"""

CONFIG = """
task: vision/classify
model: tiny/vit
adapters: {main: strange}
data: {name: digits}
train: {epochs: 1, batch_size: 8, lr: 1e-3}
"""


def test_an_adapter_and_a_run_name_the_package_that_is_gone(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package(site, "strange_method", METHOD, methods={"strange": "strange_method:Strange"})
    model = nn.Sequential(nn.Linear(4, 4))
    adapter = mmpeft.adapt(model, {"method": "strange", "targets": "all"}).save(tmp_path / "adapter")
    assert json.loads((adapter / "mmpeft.json").read_text())["packages"] == {"strange": "strange-strange-method 0.3"}
    mmpeft.load(nn.Sequential(nn.Linear(4, 4)), adapter)
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text(CONFIG)
    (run / "environment.json").write_text(json.dumps({"methods": methods.packages_of([methods.parse("strange")[0]])}))
    assert finished(str(run))[1].adapters["main"][0].name == "strange"

    monkeypatch.undo()
    methods._load_plugins.cache_clear()
    gone = r"unknown 'strange'.* installed packages that offer methods: none"
    with pytest.raises(ValueError, match=rf"{gone}; it was saved with strange-strange-method 0.3, which is not inst"):
        mmpeft.load(nn.Sequential(nn.Linear(4, 4)), adapter)
    with pytest.raises(ConfigError, match=gone) as refused:
        finished(str(run))
    assert "made with the method 'strange' of strange-strange-method 0.3, which is not installed" in str(refused.value)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match=r"name: 'lora' is the name of mmpeft\.methods\.lora\.LoRA: choose another"):

        class Mine(mmpeft.Method):
            name: ClassVar[str] = "lora"


FORMAT = """
from mmpeft.formats.foreign import Foreign
thing = Foreign({name!r}, "never", lambda source, options: 1 / 0)
"""


@pytest.mark.parametrize(
    ("name", "called", "problem"),
    [
        ("thing", "other", "is no mmpeft.formats.foreign.Foreign of this name"),
        ("vpt", "vpt", "is the name of a format"),
    ],
)
def test_a_broken_format_is_a_warning_that_names_its_package(
    site: Path, tmp_path: Path, name: str, called: str, problem: str
) -> None:
    package(site, f"format_{name}", FORMAT.format(name=called), formats={name: f"format_{name}:thing"})
    with pytest.warns(UserWarning, match=rf"{name!r} of the installed package strange-format-{name} 0.3 .*{problem}"):
        assert formats.external_formats() == {}
    assert formats.format_named("vpt", formats.readable()).__name__ == "mmpeft.formats.papers.vpt"
    if name == "thing":
        with pytest.raises(ValueError, match=r"'thing' of the installed package strange-format-thing 0.3 can't"):
            formats.convert(tmp_path / "x", tmp_path / "y", "thing")


def test_a_format_from_outside_that_is_only_read(site: Path, tmp_path: Path) -> None:
    package(site, "format_read", FORMAT.format(name="readable_only"), formats={"readable_only": "format_read:thing"})
    with pytest.raises(ValueError, match="'readable_only' of an installed package is read, not written"):
        formats.export(tmp_path / "x", tmp_path / "y", "readable_only")
