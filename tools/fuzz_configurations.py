"""The fuzzer's part for configurations: shipped ones with broken YAML, odd values and overrides, read by ``show``."""

from __future__ import annotations

import os
from argparse import Namespace
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import yaml
from fuzz import Case
from fuzz_mutations import mutated_bytes, mutated_value

from mmpeft.cli.configs import show
from mmpeft.cli.shipped import configs

NAME = "bent.yaml"
KEYS = (
    *("train", "train.lr", "train.epochs", "train.monitor", "train.cache", "model", "model.quantize", "model.merged"),
    *(
        "adapters",
        "adapters.main",
        "adapters.main.0.rank",
        "adapters.main.layers",
        "data",
        "data.name",
        "output",
        "task",
    ),
    *("base", "", "a..b", "train.lr.x", "loss", "seeds", "load", "preview.every"),
)
TEXTS = (
    *("", "3", "nf4", "[1]", "{a: 1}", "null", "true", "-1", "1e400", "9" * 5000, "[", "{a: " * 3000, "*x", "&x [*x]"),
    *("!!python/name:os.system x", "'\\0'", '"\\0"', '"\\ud800"', "x" * 10_000, "lora", "[lora, ssf]", "{method: [1]}"),
)
"""What overrides say."""
WHOLE = (
    *(b"", b"- 1\n", b"3\n", b"{a: " * 3000, b"[" * 100_000, b"- " * 5000, b"a: 1\n---\nb: 2\n", b"? [1]\n: 2\n"),
    *(
        b"a: &x [*x]\n",
        b"\xff\xfe",
        b"# \xe9\n",
        b"x: \0\n",
        b"a: \x1b\n",
        b"x: " + b"9" * 100_000,
        b"\t- x",
        b"<<: {a: 1}\n",
    ),
    b"".join(b" " * depth + b"a:\n" for depth in range(2000)),
)
"""Files that are no configuration."""


class Configurations:
    """Shipped configurations, and how they are bent."""

    def __init__(self) -> None:
        self.texts = {name: path.read_bytes() for name, path in configs().items()}
        self.values: dict[str, Any] = {name: yaml.safe_load(text) for name, text in self.texts.items()}
        self.bases = {path: path.read_bytes() for path in next(iter(configs().values())).parents[1].rglob("_*.yaml")}

    def case(self, random: Random, directory: Path) -> Case:
        """Write a bent configuration, with overrides or without."""
        name = random.choice(sorted(self.texts))
        for path, text in self.bases.items():
            (directory / path.name).write_bytes(text)
        kind = random.choice(("bytes", "values", "values", "whole", "overrides", "overrides"))
        content, overrides = self.texts[name], []
        if kind == "bytes":
            content = mutated_bytes(random, content)
        elif kind == "values":
            content = yaml.safe_dump(mutated_value(random, self.values[name])).encode("utf-8", "surrogatepass")
        elif kind == "whole":
            content = random.choice(WHOLE)
        else:
            count = random.choice((1, 1, 2, 4))
            overrides = [f"{random.choice(KEYS)}={random.choice(TEXTS)}" for _ in range(count)]
        (directory / NAME).write_bytes(content)
        # Sections that are given as a whole are named by the file, single values by their keys and origins.
        return Case(kind, lambda: self._show(directory, overrides), (NAME, "override"))

    def _show(self, directory: Path, overrides: list[str]) -> None:
        before = Path.cwd()
        os.chdir(directory)
        try:
            with redirect_stdout(StringIO()):
                show(Namespace(config=NAME, overrides=overrides))
        finally:
            os.chdir(before)
