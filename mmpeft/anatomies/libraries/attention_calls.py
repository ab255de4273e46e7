"""Where each library calls the attention kernel, and what makes it call torch's: one rule per library.

All of them end in torch's ``scaled_dot_product_attention``. What differs is which module calls it (in diffusers its
processor, in transformers the function that the configuration names in the registry), and which flag has to be set.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from torch import Tensor, as_tensor, cat, nn

from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.layers import unfit
from mmpeft.anatomies.libraries.carriers import multihead, open_clip_attention, open_clip_pool
from mmpeft.anatomies.libraries.linear import CROSS, slow
from mmpeft.anatomies.sites import AttentionSite, Switch
from mmpeft.kernels.attention import scored_attention
from mmpeft.kernels.private_names import attention_of, tell_attention

KERNELS = frozenset(("ALL_ATTENTION_FUNCTIONS", "scaled_dot_product_attention"))
"""What a forward of transformers mentions that calls a kernel: the registry of kernels, or torch's."""
SCORED = frozenset(("softcap", "s_aux"))
"""What models of transformers give their kernel that torch's doesn't take and ours does."""
UNKNOWN = frozenset(("sinks", "indices", "block_indices"))
"""What they give it that none of ours takes."""
Turn = Callable[[Tensor, int], Tensor]
WIDTHS = ("head_dim", "attention_head_size", "key_value_proj_dim", "head_size")
POSITIONS = ("wpe", "position_embeddings")
"""How transformers calls tables of learned positions."""
HEADS = ("num_key_value_heads", "num_kv_heads", "num_heads", "num_attention_heads", "n_heads", "heads")


def timm(model: nn.Module, path: str, module: Any) -> AttentionSite | None:
    """Every class of timm with a flag for torch's attention, which is set."""
    if _library(module) != "timm" or not hasattr(module, "fused_attn"):
        return None
    heads = _first(module, HEADS)
    width = _first(module, WIDTHS)
    if not width and hasattr(module, "qkv") and hasattr(module.qkv, "out_features"):
        width = module.qkv.out_features // 3 // heads
    return _site(path, module, heads, width, switches=_switch(module, "fused_attn", True))


def open_clip(model: nn.Module, path: str, module: Any) -> AttentionSite | None:
    """open_clip's own attention classes, by forwards of ours that call torch's attention."""
    forward: Any = {"Attention": open_clip_attention, "AttentionPool2d": open_clip_pool}.get(
        plain_class(module).__name__
    )
    if _library(module) != "open_clip" or forward is None:
        return None
    width = getattr(module, "head_dim", 0)
    return _site(path, module, module.num_heads if width else 0, width, carrier=(module, forward))


def torch(model: nn.Module, path: str, module: Any) -> AttentionSite | None:
    """``nn.MultiheadAttention`` of any library, by a forward of ours."""
    if not isinstance(module, nn.MultiheadAttention):
        return None
    how: dict[str, Any] = {
        "carrier": (module, multihead),
        "refusal": unfit(module),
        "switches": slow(_owners(model, path)),
    }
    return _site(path, module, module.num_heads, module.head_dim, **how)


def transformers(model: nn.Module, path: str, module: Any) -> AttentionSite | None:
    """Every module of transformers that calls the kernel that its configuration names; it is told torch's.

    It gets a copy of the configuration for itself, so that no other model with the same one is told too. A mask that
    the model made for its own kernel, ``eager``, is one that torch's attention takes.
    """
    if _library(module) != "transformers" or not _mentions(plain_class(module)) or not hasattr(module, "config"):
        return None
    config, refusal = module.config, ""
    kernel, passed = attention_of(config), _passed(plain_class(module))
    switches: tuple[Switch, ...] = ()
    if unknown := sorted(passed & UNKNOWN):
        refusal = f"{plain_class(module).__name__} gives its kernel {', '.join(unknown)}, which no kernel here takes"
    elif kernel in (None, "eager"):
        alone = [owner for owner in _owners(model, path) if not getattr(owner, "_supports_sdpa", True)]
        refusal = f"{plain_class(alone[0]).__name__} has eager attention only" if alone and not passed & SCORED else ""
        told = copy.copy(config)
        tell_attention(told, _scored() if passed & SCORED else "sdpa")
        switches = _switch(module, "config", told)
    elif kernel != "sdpa":
        refusal = f"the model runs on attn_implementation {kernel!r}: call model.set_attn_implementation('sdpa') first"
    width = _first(module, ("qk_head_dim", *WIDTHS))
    layers = (getattr(module, name, None) for name in ("k_proj", "key", "k"))
    projection: Any = next((layer for layer in layers if hasattr(layer, "out_features")), None)
    if isinstance(getattr(module, "kv_heads", None), int):
        heads = int(module.kv_heads)
    elif projection is not None and width:
        heads = projection.out_features // width
    else:
        heads = _first(module, HEADS) or _first(config, HEADS)
    values = _first(module, ("v_head_dim",)) or width
    turn = _turn(model, path, module)
    return _site(path, module, heads, width, values, switches=switches, refusal=refusal, turn=turn)


def diffusers(model: nn.Module, path: str, module: Any) -> AttentionSite | None:
    """Every module of diffusers that attends through a processor, whichever that is."""
    if _library(module) != "diffusers" or not hasattr(module, "processor") or not hasattr(module, "heads"):
        return None
    heads = int(module.heads)
    keys, values = (getattr(module, name, None) for name in ("to_k", "to_v"))
    known = hasattr(keys, "out_features") and hasattr(values, "out_features")
    widths = [int(layer.out_features) // heads if known else 0 for layer in (keys, values)]  # type: ignore[union-attr]
    return _site(path, module, heads if known else 0, *widths)


def _turn(model: nn.Module, path: str, module: nn.Module) -> Turn | None:
    """Return what turns keys by rotary positions, by the model's own table and its own function."""
    tables = (getattr(owner, "rotary_emb", None) for owner in (module, *_owners(model, path)))
    table = next((table for table in tables if table is not None), None)
    function = getattr(sys.modules[plain_class(module).__module__], "apply_rotary_pos_emb", None)
    if table is None or function is None or [*inspect.signature(table.forward).parameters] != ["x", "position_ids"]:
        return None
    return partial(_turned, table, function)


def _turned(table: Any, function: Any, keys: Tensor, by: int) -> Tensor:
    """Return keys (heads, tokens, width) ``by`` places further, in those of their features that turn."""
    places = as_tensor([[abs(by)]], device=keys.device)
    cos, sin = (part.to(keys.dtype) / table.attention_scaling for part in table(keys.float(), places))
    part = keys[None, ..., : cos.shape[-1]]
    turned = function(part, part, cos, sin if by > 0 else -sin)[0][0]
    return cat([turned, keys[..., cos.shape[-1] :]], -1)


def _site(
    path: str, module: nn.Module, heads: int, width: int, value_width: int | None = None, **settings: Any
) -> AttentionSite:
    kind = "cross" if CROSS.search(path) else "pool" if "Pool" in plain_class(module).__name__ else "attn"
    return AttentionSite(
        name=f"{kind}.kernel",
        path=f"{path}.kernel".lstrip("."),
        host=module,
        host_path=path,
        heads=int(heads),
        key_width=int(width),
        value_width=int(width if value_width is None else value_width),
        **settings,
    )


def _library(module: nn.Module) -> str:
    return plain_class(module).__module__.partition(".")[0]


def _first(owner: Any, names: tuple[str, ...]) -> int:
    return next((int(getattr(owner, n)) for n in names if isinstance(getattr(owner, n, None), int | float)), 0)


def _switch(module: nn.Module, attribute: str, value: Any) -> tuple[Switch, ...]:
    """Return the switch to a value, unless that is the library's own."""
    return () if getattr(module, attribute) is value else ((module, attribute, value),)


def _owners(model: nn.Module, path: str) -> list[nn.Module]:
    """Return the modules around a path, the innermost first."""
    parts = path.split(".")
    return [model.get_submodule(".".join(parts[:end])) for end in range(len(parts) - 1, -1, -1)]


@cache
def _mentions(cls: type) -> bool:
    code = inspect.unwrap(cls.forward).__code__  # type: ignore[attr-defined]
    return not KERNELS.isdisjoint(code.co_names)


@cache
def _passed(cls: type) -> frozenset[str]:
    """Return the names of the keyword arguments that a class's forward passes to what it calls."""
    code = inspect.unwrap(cls.forward).__code__  # type: ignore[attr-defined]
    return frozenset(name for names in code.co_consts if isinstance(names, tuple) for name in names if name)


@cache
def _scored() -> str:
    """Return the name by which transformers finds a kernel of ours that takes soft caps and sinks."""
    transformers_library = sys.modules["transformers"]
    transformers_library.AttentionInterface.register("mmpeft_scored", _scored_forward)
    return "mmpeft_scored"


def _scored_forward(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Attend as transformers' kernels do: (batch, heads, tokens, width) to (batch, tokens, heads, width)."""
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    causal = bool(causal) and attention_mask is None and query.shape[2] > 1
    scoring: dict[str, Any] = {"soft_cap": softcap, "sinks": s_aux}
    y = scored_attention(query, key, value, attention_mask, dropout, causal, scaling, **scoring)
    return y.transpose(1, 2).contiguous(), None


Rule = Callable[[nn.Module, str, nn.Module], AttentionSite | None]
RULES: tuple[Rule, ...] = (timm, open_clip, torch, transformers, diffusers)
"""How each library's modules call the kernel: of a model, a path and the module there, or None. The last that knows."""
