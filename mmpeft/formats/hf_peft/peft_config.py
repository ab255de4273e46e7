"""HF peft's ``adapter_config.json``: which modules it means, at which scale, as methods of ours."""

from __future__ import annotations

import math
import re
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from mmpeft.formats.hf_peft.path_patterns import Budget, FirstMatch, PathPattern
from mmpeft.formats.hf_peft.peft_prompts import PrefixConfig, PromptConfig
from mmpeft.formats.storage import CONFIG, read_json, validated
from mmpeft.formats.tensor_file import Shapes, described
from mmpeft.methods import IA3, DoRA, LinearProbe, LoRA, Method
from mmpeft.settings import Settings

PREFIX = "base_model.model."
LARGEST = 2**62
"""Of ranks."""
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

    @field_validator("target_modules", "exclude_modules", "feedforward_modules", check_fields=False)
    @classmethod
    def _is_expression(cls, value: Targets | None) -> Targets | None:
        if isinstance(value, str):
            PathPattern(value, Budget())
        return value

    @field_validator("modules_to_save", "layers_pattern", "rank_pattern", "alpha_pattern", check_fields=False)
    @classmethod
    def _are_expressions(cls, value: Any) -> Any:
        for name in (value,) if isinstance(value, str) else value or ():
            PathPattern(rf"(.*\.)?({name})$", Budget())
        return value

    def targets(self, path: str) -> bool:
        """Whether a module at this path gets an adapter."""
        saved = any(name.match(path) for name in self._saved)
        return not saved and not self._excluded.match(path) and self._targeted.match(path)

    @cached_property
    def _budget(self) -> Budget:
        return Budget()

    @cached_property
    def _saved(self) -> list[PathPattern | _Part]:
        names = self.modules_to_save or ()
        return [
            _Part(name) if re.fullmatch(r"\w+", name) else PathPattern(rf"(^|.*\.){name}($|\..*)", self._budget)
            for name in names
        ]

    @cached_property
    def _targeted(self) -> _Modules:
        return _Modules(self.target_modules, self._budget)

    @cached_property
    def _excluded(self) -> _Modules:
        return _Modules(self.exclude_modules or (), self._budget)

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
    r: int = Field(default=8, ge=1, le=LARGEST)
    lora_alpha: float = Field(default=8, gt=0)
    rank_pattern: dict[str, Annotated[int, Field(ge=1, le=LARGEST)]] = Field(default={})
    """Ranks of some modules, by regular expressions for the ends of their paths."""
    alpha_pattern: dict[str, Annotated[float, Field(gt=0)]] = Field(default={})
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

    @field_validator("layers_pattern")
    @classmethod
    def _is_name(cls, value: Targets | None) -> Targets | None:
        for name in (value,) if isinstance(value, str) else value or ():
            if set(name) & set("*+{"):
                raise ValueError("the name of a list of layers is expected, such as 'layers' or 'h'")
        return value

    def targets(self, path: str) -> bool:
        """Whether a module at this path gets an adapter."""
        targeted, targets = super().targets(path), self.target_modules
        if not targeted or self.layers_to_transform in (None, ()) or isinstance(targets, str) or path in targets:
            return targeted
        only = (self.layers_to_transform,) if isinstance(self.layers_to_transform, int) else self.layers_to_transform
        return self._layer(path) in (only or ())

    def rank(self, path: str) -> int:
        """The rank at this path."""
        key = self._ranks.key(path)
        return self.r if key is None else self.rank_pattern[key]

    def alpha(self, path: str) -> float:
        """The numerator of the scale at this path."""
        key = self._alphas.key(path)
        return self.lora_alpha if key is None else self.alpha_pattern[key]

    @cached_property
    def _ranks(self) -> FirstMatch:
        return FirstMatch(self.rank_pattern, self._budget)

    @cached_property
    def _alphas(self) -> FirstMatch:
        return FirstMatch(self.alpha_pattern, self._budget)

    def scale(self, path: str) -> float:
        """Alpha over the rank, or over its root."""
        rank = self.rank(path)
        return self.alpha(path) / (math.sqrt(rank) if self.use_rslora else rank)

    def _layer(self, path: str) -> int | None:
        """Return the number behind the first list of layers in a path."""
        if not self.layers_pattern:
            parts = path.split(".")
            return next((int(part) for part in parts[2:-1] if part.isdecimal()), None)
        numbers = (_number(pattern.ends(path), path) for pattern in self._layers)
        return next((number for number in numbers if number is not None), None)

    @cached_property
    def _layers(self) -> list[PathPattern]:
        names = self.layers_pattern or ()
        names = (names,) if isinstance(names, str) else names
        return [PathPattern(rf"(?:^|.*?\.){name}\.", self._budget) for name in names]

    def methods(self, shapes: Shapes) -> list[Method]:
        """Return the methods that plan these tensors: one per rank and scale, at exactly the modules in the file."""
        method = DoRA if self.use_dora else LoRA
        groups: dict[tuple[int, float], list[str]] = {}
        for path in self.paths(shapes):
            groups.setdefault((self.rank(path), self.alpha(path)), []).append(path)
        same: dict[str, Any] = {"dropout": self.lora_dropout, "rank_stabilized": self.use_rslora}
        deltas = (method(rank=r, alpha=a, targets=tuple(paths), **same) for (r, a), paths in groups.items())
        return [*deltas, *self.probe(shapes)]


class IA3Config(PeftConfig):
    """IA3: scales on outputs, and on the inputs of the feedforward modules."""

    suffix: ClassVar[str] = ".ia3_l"

    peft_type: Literal["IA3"] = "IA3"
    feedforward_modules: Targets

    def feeds(self, path: str) -> bool:
        """Whether the input is scaled at this path, not the output."""
        if isinstance(self.feedforward_modules, str):
            return self._feedforward.match(path)
        return path.endswith(self.feedforward_modules)

    @cached_property
    def _feedforward(self) -> _Modules:
        return _Modules(self.feedforward_modules, self._budget)

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
    if not isinstance(kind, str) or kind not in CONFIGS:
        raise ValueError(f"{path}: peft_type {described(kind)} is not supported: only {', '.join(CONFIGS)}")
    known = CONFIGS[kind].model_fields
    spoken = {key: value for key, value in content.items() if key in known or not silent(key, value)}
    return validated(path, spoken, CONFIGS[kind])


def silent(key: str, value: Any) -> bool:
    """Whether a value of a configuration has no influence on what an adapter computes."""
    return key in NEUTRAL or value in (None, False, "", [], {})


class _Modules:
    """Which modules are meant: by an expression for whole paths, or by the ends of paths."""

    def __init__(self, targets: Targets, budget: Budget) -> None:
        self.pattern = PathPattern(targets, budget) if isinstance(targets, str) else None
        self.ends = frozenset(() if isinstance(targets, str) else targets)

    def match(self, path: str) -> bool:
        """Whether the module at a path is meant."""
        if self.pattern is not None:
            return self.pattern.fullmatch(path)
        parts = path.split(".")
        return any(".".join(parts[start:]) in self.ends for start in range(len(parts)))


class _Part:
    """A name that is a whole part of a path."""

    def __init__(self, name: str) -> None:
        self.name = name

    def match(self, path: str) -> bool:
        """Whether a path has it."""
        return self.name in path.split(".")


def _number(ends: int, path: str) -> int | None:
    """Return the number that begins at the first of these places and is a part of the path."""
    places = (position for position in range(len(path)) if ends >> position & 1)
    matches = (re.match(r"(\d{1,9})\.", path[position:]) for position in places)
    return next((int(match[1]) for match in matches if match), None)
