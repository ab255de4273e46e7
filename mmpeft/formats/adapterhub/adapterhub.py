"""AdapterHub's directories: ``adapter_config.json`` beside ``adapter.safetensors`` or ``pytorch_adapter.bin``.

Bottleneck adapters behind attention and MLP (Houlsby, "double sequential"), behind the MLP (Pfeiffer, "sequential") and
beside it (parallel). Names of their tensors are those of the model's modules, so that the model has to be given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mmpeft.anatomies.sites import BranchSite
from mmpeft.formats.adapterhub.bottleneck_config import BottleneckConfig, read_bottleneck_config
from mmpeft.formats.any_file import find_file, read_values
from mmpeft.formats.foreign import Foreign, Imported
from mmpeft.formats.ledger import Ledger
from mmpeft.formats.tensor_file import refuse
from mmpeft.injection.planning import anatomies_of, sketch
from mmpeft.settings import Settings

FILES = ("adapter.safetensors", "pytorch_adapter.bin")
NAME = re.compile(r"(?:.+\.)?(?:layers?|h|block)\.(?P<layer>\d+)\.(?P<at>.+?)\.adapters\.(?P<name>[^.]+)\.(?P<rest>.+)")
LOCATIONS = {"attention.output": "attn", "attention_adapters": "attn", "output": "mlp", "output_adapters": "mlp"}
"""Where adapters stand, by what their names have between the layer's number and ``adapters``."""


@dataclass(frozen=True)
class OfModel(Foreign):
    """A format that is read with the one module that the adapter is for."""

    read: Callable[..., Imported]

    def _found(self, source: Path, chosen: Any, base: Any) -> Imported:
        if not isinstance(base, nn.Module):
            raise ValueError(f"base: format {self.name} names the layers of a model: give the model, or --base MODEL")
        return self.read(source, base, chosen)


def read(source: Path, model: nn.Module, options: Settings) -> Imported:
    """Return a method for each width of bottleneck, at exactly the layers that the file has."""
    path = find_file(source, FILES)
    config = read_bottleneck_config(source if source.is_dir() else source.parent)
    values = read_values(path)
    ledger = Ledger(path, {_short(key): value for key, value in values.items()})
    linear = int(config.ln_before)
    ledger.shape(rf"\d+\.(attn|mlp)\.adapter_down\.{linear}\.weight", 2)
    widths: dict[int, set[int]] = {}
    for key, value in ledger.values.items():
        down = re.fullmatch(rf"(\d{{1,9}})\.(?:attn|mlp)\.adapter_down\.{linear}\.weight", key)
        if down and isinstance(value, Tensor) and value.ndim == 2:
            widths.setdefault(len(value), set()).add(int(down[1]))
    methods = [config.method(width, tuple(sorted(layers))) for width, layers in sorted(widths.items())]
    _enter(ledger, model, config, methods)
    ledger.leave(r"\d+\.(attn|mlp)\.adapter_down\.0\.(weight|bias)" if linear else r"(?!)")
    notes = [f"dropout {config.dropout}, behind U in training, is left out"] if config.dropout else []
    return Imported([*methods], ledger.close(), notes)


def _short(key: str) -> str:
    """Return ``LAYER.attn.NAME`` or ``LAYER.mlp.NAME`` of an adapter's tensor, whatever the modules around it are."""
    match = NAME.fullmatch(key)
    if match is None or match["at"] not in LOCATIONS:
        return key
    return f"{match['layer']}.{LOCATIONS[match['at']]}.{match['rest']}"


def _enter(ledger: Ledger, model: nn.Module, config: BottleneckConfig, methods: list[Any]) -> None:
    (part,) = sketch(anatomies_of(model), methods).values()
    for site, edit, key in part.places:
        assert isinstance(site, BranchSite)
        if config.is_parallel and site.norm is None:
            refuse(ledger.path, [f"is_parallel: only for blocks with norms behind (BERT), not for {site.path}"])
        layer = re.search(r"(\d+)\.\w+$", site.path)
        if layer is None:
            raise ValueError(f"{site.path}: no number of a layer in its name")
        for name, value in edit.state_dict().items():
            ledger.enter(f"{key}.{name}", f"{layer[1]}.{site.name}.{_theirs(name, config)}", tuple(value.shape))


def _theirs(name: str, config: BottleneckConfig) -> str:
    if name == "scale":
        return "scaling"
    part, _, end = name.partition(".")
    down = f"adapter_down.{int(config.ln_before)}"
    return f"{ {'down': down, 'up': 'adapter_up', 'norm': 'adapter_norm_before'}[part] }.{end}"


FORMAT = OfModel("adapterhub", r"adapters\.[^.]+\.adapter_(down|up)\.", read)
convert = FORMAT.convert
