"""Laying an adapter out as HF peft does: slices of a fused layer become blocks of one bigger delta."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from itertools import accumulate

import torch
from torch import Tensor, nn

from mmpeft.anatomies.headed import backbone_of
from mmpeft.anatomies.hosts import plain_class
from mmpeft.anatomies.sites import LinearSite, ParametersSite, WeightSite
from mmpeft.edits import DecomposedLowRank, Edit, LowRank, Scale, SoftPrompt, Unfreeze
from mmpeft.formats.hf_peft.peft_config import PREFIX, AnyConfig, IA3Config, LoRAConfig
from mmpeft.formats.hf_peft.peft_layout import Index, Piece, TensorLayout
from mmpeft.formats.hf_peft.peft_prompts import VECTORS, PromptConfig, task_of
from mmpeft.injection.tree import Adapter
from mmpeft.kernels.quantized import dense, shape_of
from mmpeft.kernels.rows import Interleaved, indices
from mmpeft.methods import LoRA, PTuning

Place = tuple[WeightSite, Edit, str]
ALL = slice(None)
CONV1D = "Conv1D"
"""GPT-2's linear layer, whose weight lies (in, out)."""
FUSED_EXPERTS = ".experts.gate_up_proj"
EXPERT_LAYERS = {"gate", "gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"}
"""Last names of layers that peft 0.18 and later takes for experts in models that have them fused."""
LOW_RANK: tuple[set[type[Edit]], ...] = ({LowRank}, {DecomposedLowRank})
"""Kinds of edit that one of peft's LoRA configurations holds."""


class InexpressibleError(ValueError):
    """An adapter that HF peft has no counterpart of."""


def lay_out(adapter: Adapter, module: nn.Module) -> tuple[TensorLayout, AnyConfig]:
    """Return the layout of an adapter in a module, with its configuration; else an InexpressibleError says why."""
    module = backbone_of(module)
    if any(isinstance(edit, SoftPrompt) for _, edit, _ in adapter.places):
        return _lay_out_prompt(adapter, module)
    layout, hosts = TensorLayout(), _by_host(adapter)
    layout.hosts = list(hosts)
    kinds = {_kind(edit) for places in hosts.values() for _, edit, _ in places}
    config: AnyConfig
    if kinds in LOW_RANK:
        config = _lay_out_low_rank(layout, hosts, [method for method in adapter.methods if isinstance(method, LoRA)])
    elif kinds == {Scale}:
        config = _lay_out_scales(layout, hosts)
    else:
        reason = "peft has no counterpart of" if adapter.places else "this model has no site for"
        raise InexpressibleError(f"{reason} {' with '.join(method.name for method in adapter.methods)}")
    _lay_out_saved(layout, adapter)
    config = config.model_copy(update={"modules_to_save": tuple(layout.saved) or None})
    ambiguous = layout.disagreements(config, module)
    if ambiguous:
        raise InexpressibleError("peft finds modules by the ends of their paths: " + "; ".join(ambiguous))
    return layout, config


def _lay_out_prompt(adapter: Adapter, module: nn.Module) -> tuple[TensorLayout, PromptConfig]:
    (_, edit, key), *others = adapter.places
    method, *_ = adapter.methods
    if others:
        raise InexpressibleError("peft has no counterpart of a prompt together with other edits")
    shape = edit.get_parameter("vectors").shape
    layout = TensorLayout(pieces=[Piece(f"{key}.vectors", VECTORS, (ALL, ALL))])
    layout.defaults[VECTORS] = torch.zeros(()).expand(shape)
    config = PromptConfig(
        peft_type="P_TUNING" if isinstance(method, PTuning) else "PROMPT_TUNING",
        task_type=task_of(plain_class(module).__name__),
        num_virtual_tokens=shape[0],
        token_dim=shape[1],
        encoder_hidden_size=method.hidden if isinstance(method, PTuning) else None,
    )
    return layout, config


def lay_out_low_rank(adapter: Adapter) -> tuple[TensorLayout, LoRAConfig]:
    """Return the layout of LoRA or DoRA alone, and the configuration; anything else is an InexpressibleError."""
    layout, hosts = TensorLayout(), _by_host(adapter)
    kinds = {_kind(edit) for _, edit, _ in adapter.places}
    if kinds not in LOW_RANK:
        raise InexpressibleError(f"no LoRA or DoRA alone: {', '.join(sorted(kind.__name__ for kind in kinds))}")
    return layout, _lay_out_low_rank(layout, hosts, [method for method in adapter.methods if isinstance(method, LoRA)])


def _kind(edit: Edit) -> type[Edit]:
    """Return the class of an edit, on a convolution the one that it would have on a linear layer."""
    return next((kind for kind in (DecomposedLowRank, LowRank) if isinstance(edit, kind)), type(edit))


def _by_host(adapter: Adapter) -> dict[str, list[Place]]:
    hosts: dict[str, list[Place]] = {}
    for site, edit, key in adapter.places:
        if isinstance(edit, Unfreeze):
            continue
        if edit.input_gate is not None:
            raise InexpressibleError(f"{site.path}: peft has no gates")
        if not isinstance(site, WeightSite) or not _wrapped(site.host) or site.switches:
            raise InexpressibleError(f"{site.path}: peft has no {type(edit).__name__} that takes effect here")
        hosts.setdefault(site.host_path, []).append((site, edit, key))
    return hosts


def check_experts(layout: TensorLayout, module: nn.Module) -> None:
    """Refuse to write layers that peft takes for fused experts, by their last name, where a model has such experts.

    The experts of mixtures were linear layers of these names before transformers 5, and peft moves adapters of that
    time to the fused weights while loading: those of shared experts, dense layers and routers along with them.
    """
    fused = any(FUSED_EXPERTS in name for name, _ in module.named_parameters())
    moved = [path for path in layout.hosts if fused and path.rpartition(".")[2] in EXPERT_LAYERS]
    if moved:
        raise InexpressibleError(f"{moved[0]}: peft takes an adapter of this name for one of the fused experts")


def _wrapped(host: nn.Module) -> bool:
    """Whether peft's layer computes as ours: its A of a convolution knows no dilation and no padding but zeros."""
    plain = isinstance(host, nn.Conv2d) and host.dilation == (1, 1) and host.padding_mode == "zeros"
    return plain or isinstance(host, nn.Linear) or plain_class(host).__name__ == CONV1D


def _weight(site: WeightSite) -> Tensor:
    """Return the host's weight, the outputs first."""
    weight = dense(site.host.get_parameter("weight")).detach()
    return weight.T if isinstance(site, LinearSite) and site.transposed else weight


def _shape(site: WeightSite) -> tuple[int, ...]:
    shape = tuple(shape_of(site.host.get_parameter("weight")))
    return shape[::-1] if isinstance(site, LinearSite) and site.transposed else shape


def _lay_out_low_rank(layout: TensorLayout, hosts: Mapping[str, list[Place]], methods: list[LoRA]) -> LoRAConfig:
    dropouts = {method.dropout for method in methods}
    if len(dropouts) > 1:
        raise InexpressibleError(f"peft has one dropout for all layers, and this adapter has {sorted(dropouts)}")
    ranks = {path: _stack(layout, path, places) for path, places in hosts.items()}
    root = all(method.rank_stabilized for method in methods)
    alphas = {path: _alpha(layout.scales[path], rank, root) for path, rank in ranks.items()}
    usual_rank, usual_alpha = Counter((ranks[path], alphas[path]) for path in hosts).most_common(1)[0][0]
    return LoRAConfig(
        target_modules=tuple(hosts),
        r=usual_rank,
        lora_alpha=usual_alpha,
        rank_pattern={path: rank for path, rank in ranks.items() if rank != usual_rank},
        alpha_pattern={path: alpha for path, alpha in alphas.items() if alpha != usual_alpha},
        lora_dropout=dropouts.pop(),
        use_rslora=root,
        use_dora=any(name.endswith("lora_magnitude_vector") for name in layout.defaults),
        fan_in_fan_out=_transposed(hosts),
    )


def _stack(layout: TensorLayout, path: str, places: list[Place]) -> int:
    """Stack the A's of one layer, put its B's on blocks, and return the rank of the whole."""
    edits = [(site, edit, key) for site, edit, key in places if isinstance(edit, LowRank)]
    name, scales = PREFIX + path, {edit.scale for _, edit, _ in edits}
    if len(scales) > 1:
        raise InexpressibleError(f"{path}: peft has one scale for a layer, and this adapter has {sorted(scales)}")
    layout.scales[path] = scales.pop()
    parts = [(site, f"{key}.{part}", len(edit.lora_A)) for site, edit, key in edits for part in edit.parts]
    ends = list(accumulate(rank for *_, rank in parts))
    out, *each = _shape(places[0][0])
    layout.defaults[f"{name}.lora_A.weight"] = torch.zeros(()).expand(ends[-1], *each)
    layout.defaults[f"{name}.lora_B.weight"] = torch.zeros(()).expand(out, ends[-1], *[1] * len(each[1:]))
    for (site, part, _), start, end in zip(parts, [0, *ends], ends, strict=False):
        columns = slice(start, end)
        layout.pieces.append(Piece(f"{part}_A", f"{name}.lora_A.weight", (columns,)))
        layout.pieces.append(Piece(f"{part}_B", f"{name}.lora_B.weight", (_index(site), columns)))
    if isinstance(edits[0][1], DecomposedLowRank):
        _add_magnitudes(layout, path, places)
    return ends[-1]


def _add_magnitudes(layout: TensorLayout, path: str, places: list[Place]) -> None:
    """Where no slice is edited, the magnitude is the norm of the row, which leaves the row as it is.

    Of a linear layer it is (out), of a convolution (1, out, 1, 1).
    """
    _disjoint(path, places)
    theirs, weight = f"{PREFIX}{path}.lora_magnitude_vector", _weight(places[0][0])
    norms = torch.linalg.vector_norm(weight.flatten(1), dim=1, dtype=torch.promote_types(weight.dtype, torch.float32))
    layout.defaults[theirs] = norms if weight.ndim == 2 else norms[None, :, None, None]
    for site, _, key in places:
        rows: Index = (_index(site),)
        layout.pieces.append(Piece(f"{key}.magnitude", theirs, rows if weight.ndim == 2 else (0, *rows, 0, 0)))


def _lay_out_scales(layout: TensorLayout, hosts: Mapping[str, list[Place]]) -> IA3Config:
    for path, places in hosts.items():
        (out, *each), theirs = _shape(places[0][0]), f"{PREFIX}{path}.ia3_l"
        on_input = any(edit.on == "input" for _, edit, _ in places if isinstance(edit, Scale))
        if on_input and len(places) > 1:
            raise InexpressibleError(f"{path}: peft scales a layer's input or its output once, not {len(places)} times")
        _disjoint(path, places)
        layout.inputs += [path] if on_input else []
        layout.defaults[theirs] = torch.ones(()).expand((1, *each) if on_input else (out, 1))
        for site, _, key in places:
            layout.pieces.append(Piece(f"{key}.scale", theirs, (0, ALL) if on_input else (_index(site), 0)))
    inputs = tuple(layout.inputs)
    return IA3Config(target_modules=tuple(hosts), feedforward_modules=inputs, fan_in_fan_out=_transposed(hosts))


def _transposed(hosts: Mapping[str, list[Place]]) -> bool:
    """Whether the weights of these layers lie (in, out): peft has one answer for all."""
    kinds = {isinstance(site, LinearSite) and site.transposed for places in hosts.values() for site, _, _ in places}
    if len(kinds) > 1:
        raise InexpressibleError("peft takes weights as (in, out) in all layers or in none")
    return kinds.pop()


def _lay_out_saved(layout: TensorLayout, adapter: Adapter) -> None:
    for site, edit, key in adapter.places:
        if isinstance(edit, Unfreeze) and isinstance(site, ParametersSite):
            _save_whole(layout, site, edit, key)


def _save_whole(layout: TensorLayout, site: ParametersSite, edit: Unfreeze, key: str) -> None:
    if site.tower == "task":
        raise InexpressibleError(f"{site.path}: the head is not part of the backbone, which is all that peft sees")
    state = edit.state_dict()
    if site.tied or state.keys() != site.host.state_dict().keys():
        raise InexpressibleError(f"{site.host_path}: peft trains a module whole and on its own, not {', '.join(state)}")
    layout.saved.append(site.host_path)
    for name, value in edit.named_parameters():
        theirs = f"{PREFIX}{site.host_path}.{name}"
        layout.defaults[theirs] = torch.zeros(()).expand(value.shape)
        layout.pieces.append(Piece(f"{key}.{name}", theirs, (ALL,) * value.ndim))


def _index(site: WeightSite) -> slice | list[int]:
    return _rows(site) if isinstance(site.rows, Interleaved) else site.rows or ALL


def _rows(site: WeightSite) -> list[int]:
    return indices(site.rows or ALL, _shape(site)[0])


def _disjoint(path: str, places: list[Place]) -> None:
    rows = [row for site, _, _ in places for row in _rows(site)]
    if len(rows) > len(set(rows)):
        raise InexpressibleError(f"{path}: peft edits the rows of a layer once, and here edits overlap")


def _alpha(scale: float, rank: int, root: bool) -> float:
    alpha = scale * (math.sqrt(rank) if root else rank)
    return round(alpha) if math.isclose(alpha, round(alpha), rel_tol=1e-12) else alpha
