"""HF peft's ``adapter_config.json``: which modules it means, at which scale, as methods of ours."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from mmpeft.formats.hf_peft.peft_prompts import PrefixConfig, PromptConfig
from mmpeft.formats.storage import CONFIG, read_json, validated
from mmpeft.formats.tensor_file import Shapes
from mmpeft.methods import IA3, DoRA, LinearProbe, LoRA, Method
from mmpeft.settings import Settings

PREFIX = "base_model.model."
Targets = str | tuple[str, ...]
NEUTRAL = {
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "init_ia3_weights"),
    *("megatron_core", "peft_version", "qalora_group_size", "revision", "task_type"),
    *("prompt_tuning_init", "prompt_tuning_init_text", "tokenizer_name_or_path", "tokenizer_kwargs"),
    *("encoder_reparameterization_type", "encoder_num_layers", "encoder_dropout", "num_layers", "num_attention_heads"),
}
"""Keys without influence on what an adapter computes."""


class PeftConfig(Settings):
    """What LoRA and IA3 configurations share, with peft's own rules for finding modules by name."""

    suffix: ClassVar[str]

    peft_type: str
    target_modules: Targets
    """A regular expression over paths, or the ends of paths."""
    exclude_modules: Targets | None = None
    modules_to_save: tuple[str, ...] | None = None
    """Modules that are trained and saved whole."""
    fan_in_fan_out: bool = False
    """Whether weights lie (in, out), as GPT-2's do; the layers say it themselves."""

    def targets(self, path: str) -> bool:
        """Whether a module at this path gets an adapter."""
        saved = any(re.match(rf"(^|.*\.){name}($|\..*)", path) for name in self.modules_to_save or ())
        excluded = self.exclude_modules is not None and _matches(self._excluded, path)
        return not saved and not excluded and _matches(self._targeted, path)

    @cached_property
    def _targeted(self) -> str | frozenset[str]:
        return _quick(self.target_modules)

    @cached_property
    def _excluded(self) -> str | frozenset[str]:
        return _quick(self.exclude_modules or ())

    def saves(self, path: str) -> bool:
        """Whether the module at this path is saved whole; ends of paths count here even inside a name."""
        return path.endswith(self.modules_to_save or ())

    def paths(self, shapes: Shapes) -> list[str]:
        """Return the paths of the modules that have an adapter in a file of these tensors."""
        return [key[len(PREFIX) : -len(self.suffix)] for key in shapes if key.endswith(self.suffix)]

    def probe(self, shapes: Shapes) -> list[Method]:
        """Return a linear probe when a file of these tensors holds a module that was trained whole."""
        rest = [key[len(PREFIX) :].rpartition(".")[0] for key in shapes if "lora_" not in key and "ia3_" not in key]
        return [LinearProbe()] if any(self.saves(path) for path in rest) else []


class LoRAConfig(PeftConfig):
    """LoRA, rsLoRA and DoRA."""

    suffix: ClassVar[str] = ".lora_A.weight"

    peft_type: Literal["LORA"] = "LORA"
    r: int = Field(default=8, ge=1)
    lora_alpha: float = Field(default=8, gt=0)
    rank_pattern: dict[str, int] = Field(default={})
    """Ranks of some modules, by regular expressions for the ends of their paths."""
    alpha_pattern: dict[str, float] = Field(default={})
    lora_dropout: float = Field(default=0.0, ge=0, lt=1)
    use_rslora: bool = False
    use_dora: bool = False
    bias: Literal["none"] = "none"
    lora_bias: Literal[False] = False
    layers_to_transform: int | tuple[int, ...] | None = None
    """Only these layers, where ``target_modules`` are ends of paths."""
    layers_pattern: Targets | None = None
    init_lora_weights: bool | Literal["gaussian", "orthogonal"] = True
    """Others (pissa, olora ...) have changed the base, which this adapter's file does not tell."""

    def targets(self, path: str) -> bool:
        """Whether a module at this path gets an adapter."""
        found, ends = super().targets(path), self._targeted
        if not found or self.layers_to_transform in (None, ()) or isinstance(ends, str) or path in ends:
            return found
        only = (self.layers_to_transform,) if isinstance(self.layers_to_transform, int) else self.layers_to_transform
        return self._layer(path) in (only or ())

    def rank(self, path: str) -> int:
        """The rank at this path."""
        return self.rank_pattern.get(_pattern(self.rank_pattern, path), self.r)

    def alpha(self, path: str) -> float:
        """The numerator of the scale at this path."""
        return self.alpha_pattern.get(_pattern(self.alpha_pattern, path), self.lora_alpha)

    def scale(self, path: str) -> float:
        """Alpha over the rank, or over its root."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.use_rslora else rank)

    def _layer(self, path: str) -> int | None:
        patterns = self.layers_pattern or ()
        patterns = (patterns,) if isinstance(patterns, str) else patterns
        expressions = [rf"(?:^|.*?\.){name}\.(\d+)\." for name in patterns] or [r".*?\.[^.]*\.(\d+)\."]
        found = (re.match(expression, path) for expression in expressions)
        return next((int(match[1]) for match in found if match), None)

    def methods(self, shapes: Shapes) -> list[Method]:
        """Return the methods that plan these tensors: one per rank and scale, at exactly the modules in the file."""
        method = DoRA if self.use_dora else LoRA
        groups: dict[tuple[int, float], list[str]] = {}
        for path in self.paths(shapes):
            groups.setdefault((self.rank(path), self.alpha(path)), []).append(path)
        same: dict[str, Any] = {"dropout": self.lora_dropout, "rank_stabilized": self.use_rslora}
        deltas = (method(rank=r, alpha=a, targets=tuple(own), **same) for (r, a), own in groups.items())
        return [*deltas, *self.probe(shapes)]


class IA3Config(PeftConfig):
    """IA3: scales on outputs, and on the inputs of the feedforward modules."""

    suffix: ClassVar[str] = ".ia3_l"

    peft_type: Literal["IA3"] = "IA3"
    feedforward_modules: Targets

    def feeds(self, path: str) -> bool:
        """Whether the input is scaled at this path, not the output."""
        if isinstance(self.feedforward_modules, str):
            return re.fullmatch(self.feedforward_modules, path) is not None
        return path.endswith(self.feedforward_modules)

    def methods(self, shapes: Shapes) -> list[Method]:
        """Return the methods that plan these tensors, at exactly the modules in the file."""
        paths = self.paths(shapes)
        inputs = tuple(path for path in paths if self.feeds(path))
        return [IA3(targets=tuple(p for p in paths if p not in inputs), feedforward=inputs), *self.probe(shapes)]


AnyConfig = LoRAConfig | IA3Config | PromptConfig | PrefixConfig
CONFIGS: dict[str, type[AnyConfig]] = {
    "LORA": LoRAConfig,
    "IA3": IA3Config,
    "PROMPT_TUNING": PromptConfig,
    "P_TUNING": PromptConfig,
    "PREFIX_TUNING": PrefixConfig,
}


def read_config(directory: Path) -> AnyConfig:
    """Return the configuration in a directory; one that asks for what mmpeft can't do is an error that names it."""
    path = directory / CONFIG
    content = read_json(path)
    kind = content.get("peft_type")
    if kind not in CONFIGS:
        raise ValueError(f"{path}: peft_type {kind!r} is not supported: only {', '.join(CONFIGS)}")
    known = CONFIGS[kind].model_fields
    spoken = {key: value for key, value in content.items() if key in known or not silent(key, value)}
    return validated(path, spoken, CONFIGS[kind])


def silent(key: str, value: Any) -> bool:
    """Whether a value of a configuration has no influence on what an adapter computes."""
    return key in NEUTRAL or value in (None, False, "", [], {})


def _quick(targets: Targets) -> str | frozenset[str]:
    return targets if isinstance(targets, str) else frozenset(targets)


def _matches(targets: str | frozenset[str], path: str) -> bool:
    if isinstance(targets, str):
        return re.fullmatch(targets, path) is not None
    parts = path.split(".")
    return any(".".join(parts[start:]) in targets for start in range(len(parts)))


def _pattern(patterns: Iterable[str], path: str) -> str:
    return next((pattern for pattern in patterns if re.match(rf"(.*\.)?({pattern})$", path)), path)
