"""The README of a run directory: a model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmpeft.configuration import as_yaml
from mmpeft.training.config import RunConfig
from mmpeft.training.run.run_directory import RunDirectory

CARD = """\
---
base_model: {model}
library_name: mmpeft
tags: [mmpeft, {task}]
---
# {title}

Adapter of `{model}` for `{task}`, trained on `{data}` with mmpeft.

| split | {names} |
|---|{rules}
{scores}

Weights were chosen at {selected}; the test split was looked at once, at the end.{embedded}

- {trainable:,} trainable of {total:,} parameters ({share:.2%})
- {steps} steps in {seconds:.0f} s, peak memory {memory:.0f} MiB ({kind})

## Use

```python
import mmpeft

{loading}
{loads}
```

## Configuration

```yaml
{yaml}```
"""
SPLITS = {"validation": "validation", "test": "test", "frozen": "test, without the adapter"}
EMBEDDED = " The backbone is one of the tiny ones that mmpeft ships: the numbers say nothing about full-size models."


def model_card(config: RunConfig, metrics: dict[str, Any], loading: str) -> str:
    """Return the card of a finished run; ``loading`` is the Python that makes ``model``."""
    names = list(metrics["test"])
    methods = {name: "+".join(method.name for method in methods) for name, methods in config.adapters.items()}
    paths = RunDirectory(Path()).adapters(list(methods))
    merged = [f'mmpeft.load(model, "{path}").merge_and_unload()' for path in config.model.merged]
    loads = [f'mmpeft.load(model, "{path}", name="{name}")' for name, path in paths.items()]
    return CARD.format(
        title=", ".join(f"{name} ({summands})" for name, summands in methods.items()),
        model=config.model.name,
        task=config.task,
        data=config.data.title,
        names=" | ".join(names),
        rules="---|" * len(names),
        scores="\n".join(_row(SPLITS[split], metrics[split], names) for split in SPLITS if split in metrics),
        selected=metrics["selected"],
        embedded=EMBEDDED if config.model.name.startswith("tiny/") else "",
        trainable=metrics["trainable_parameters"],
        total=metrics["total_parameters"],
        share=metrics["trainable_parameters"] / metrics["total_parameters"],
        steps=metrics["steps"],
        seconds=metrics["seconds"],
        memory=metrics["peak_memory_bytes"] / 2**20,
        kind=metrics["peak_memory"],
        loading=loading,
        loads="\n".join([*merged, *loads]),
        yaml=as_yaml(config),
    )


def _row(name: str, scores: dict[str, float], names: list[str]) -> str:
    return f"| {name} | {' | '.join(f'{scores[score]:.4f}' for score in names)} |"
