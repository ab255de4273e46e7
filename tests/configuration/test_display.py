"""What is written reads back as the same values."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from mmpeft.configuration import Document, as_yaml, load_config, read_document, resolved
from mmpeft.configuration.source import parse
from mmpeft.settings import Settings


class Section(Settings):
    """A section."""

    lr: float = 1e-5
    text: str = "3e-4"
    word: str = "no"
    sizes: tuple[int, ...] = ()
    nothing: int | None = None


class Config(Settings):
    """A configuration."""

    section: Section = Section()
    items: tuple[dict[str, Any], ...] = ()
    name: str = "x: # y"


def test_as_yaml_reads_back_here_and_by_any_reader() -> None:
    config = Config(items=({"a": 1, "b": {"c": [2]}},))
    text = as_yaml(config)
    assert Config.model_validate(parse(text, str).data) == config
    assert yaml.safe_load(text)["section"]["word"] == "no"


def test_resolved_reads_back_and_names_each_origin(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    Path("c.yaml").write_text("section:\n  sizes: [1, 2]\nitems:\n  - {a: 1, b: {c: 2}}\n  - {a: 3}\n")
    document = read_document(Path("c.yaml"), ["section.lr=2e-7"])
    config = document.validate(Config)
    text = resolved(config, document)
    Path("d.yaml").write_text(text)
    assert load_config(Path("d.yaml"), [], Config)[0] == config
    origins = {line.split(":")[0].strip(" -"): line.rpartition("  # ")[2] for line in text.splitlines()}
    assert origins["lr"] == "override"
    assert origins["sizes"] == "c.yaml:2"
    assert origins["c"] == "c.yaml:4"
    assert origins["word"] == origins["nothing"] == origins["name"] == "default"


def test_a_bare_name_is_the_origin_of_the_value_that_repeats_it() -> None:
    document = Document("c", {"section": "no"}, {"section": "c:1"})
    lines = resolved(Config(), document).splitlines()
    assert next(line for line in lines if "word" in line).endswith("# c:1")
    assert next(line for line in lines if "lr" in line).endswith("# default")
