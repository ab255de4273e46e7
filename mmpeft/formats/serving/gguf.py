"""A LoRA in llama.cpp's GGUF: ``llama-server -m MODEL.gguf --lora ADAPTER.gguf``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from mmpeft.files import replaced_file
from mmpeft.formats.any_file import check_suffix
from mmpeft.formats.serving.served import ServedAdapter, read_served
from mmpeft.optional import require
from mmpeft.settings import nearest

ARCHITECTURES = {
    "llama": "LLAMA",
    "mistral": "LLAMA",
    "qwen2": "QWEN2",
    "qwen3": "QWEN3",
    "gemma": "GEMMA",
    "gemma2": "GEMMA2",
    "gemma3_text": "GEMMA3",
    "phi3": "PHI3",
}
"""llama.cpp's architectures by transformers' ``model_type``, where it keeps weights as they are or as below."""
ROTATED = "LLAMA"
"""The architecture in which llama.cpp pairs neighbouring features for the rotation, where transformers pairs halves."""


def export(directory: Path, dest: Path, base: Any = None) -> None:
    """Write one of our directories as an adapter in GGUF, as llama.cpp's own conversion names and orders it.

    llama.cpp scales each delta by alpha over its own rank; where that can't be every scale, they are folded into B.

    Raises:
        ValueError: For what llama.cpp's loader has no place for; all of it at once.
        ImportError: If gguf is not installed.
    """
    check_suffix(dest, ".gguf")
    gguf = require("gguf", "mmpeft[gguf]")
    if base is None:
        raise ValueError("base: format gguf names the layers by the model's family: give the model, or --base MODEL")
    config = base.config
    if config.model_type not in ARCHITECTURES:
        raise ValueError(f"base: format gguf knows no {config.model_type!r}{nearest(config.model_type, ARCHITECTURES)}")
    served, name = read_served(directory, "gguf"), ARCHITECTURES[config.model_type]
    names = _names(gguf, name, served, config)
    unknown = [f"{path}: llama.cpp has no such layer" for path in served.deltas if path not in names]
    served.refuse([*served.problems, *unknown])
    alphas = {delta.scale * len(delta.a) for delta in served.deltas.values()}
    alpha = alphas.pop() if len(alphas) == 1 else float(served.rank)
    dest.parent.mkdir(parents=True, exist_ok=True)
    with replaced_file(dest) as temporary:
        writer = gguf.GGUFWriter(temporary, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH[name]])
        writer.add_type(gguf.GGUFType.ADAPTER)
        writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
        writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, alpha)
        for path, delta in served.deltas.items():
            b = _ordered(path, delta.scaled_to(alpha / len(delta.a)), name, config)
            writer.add_tensor(f"{names[path]}.weight.lora_a", delta.a.float().contiguous().numpy())
            writer.add_tensor(f"{names[path]}.weight.lora_b", b.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()


def _names(gguf: Any, name: str, served: ServedAdapter, config: Any) -> dict[str, str]:
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH[name], config.num_hidden_layers)
    names = {path: table.get_name(path) for path in served.deltas}
    return {path: native for path, native in names.items() if native is not None}


def _ordered(path: str, b: Tensor, name: str, config: Any) -> Tensor:
    """Return the rows of B (out, rank) in llama.cpp's order: within a head, features of both halves alternate."""
    last = path.rpartition(".")[2]
    if name != ROTATED or last not in ("q_proj", "k_proj"):
        return b
    heads = config.num_attention_heads if last == "q_proj" else config.num_key_value_heads
    return b.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
