"""What each of Dassl's trainers learns, under our names."""

from __future__ import annotations

import re
from typing import Any, Literal

import torch
from pydantic import NonNegativeInt
from torch import Tensor

from mmpeft.formats.ledger import Ledger
from mmpeft.formats.papers.clip_layout import LAYOUTS, Library
from mmpeft.methods import IVLP, CLIPAdapter, CoCoOp, CoOp, MaPLe, Method, PromptSRC
from mmpeft.settings import Settings


class Options(Settings):
    """What the files do not hold."""

    epoch: NonNegativeInt | Literal["best"] | None = None
    """the epoch's number, or 'best'; None is the one that the text file 'checkpoint' names"""
    model: Library = "open_clip"
    """which library's CLIP will load the adapter: open_clip, open_clip_custom_text or transformers"""
    position: Literal["end", "middle", "front"] = "end"
    """where CoOp's class token stands"""
    init: str = "a photo of a"
    """the words whose first ones MaPLe's, IVLP's and PromptSRC's prompts of up to 4 tokens replaced; the rest stays"""
    ratio: float = 0.2
    """CLIP-Adapter's share of the adapted features"""


def coop(ledger: Ledger, options: Options) -> list[Method]:
    """Enter the words of CoOp, (tokens, width) or one set per class."""
    specific = any(isinstance(v, Tensor) and v.ndim == 3 for k, v in ledger.values.items() if k == "ctx")
    shape = ledger.shape("ctx", 3 if specific else 2)
    ledger.enter(f"{LAYOUTS[options.model].at('text', 'prompt')}.coop.context", "ctx", shape)
    classes = shape[0] if specific else None
    method = CoOp(tokens=shape[-2], position=options.position, class_specific=specific, classes=classes)
    return [method]


def cocoop(ledger: Ledger, options: Options) -> list[Method]:
    """Enter the words of CoCoOp and the network that moves them."""
    ours = f"{LAYOUTS[options.model].at('text', 'prompt')}.cocoop"
    tokens, width = ledger.shape("ctx", 2)
    hidden, features = ledger.shape(r"meta_net\.linear1\.weight", 2)
    ledger.enter(f"{ours}.context", "ctx", (tokens, width))
    for index, name, shape in ((0, "linear1", (hidden, features)), (2, "linear2", (width, hidden))):
        ledger.enter(f"{ours}.meta.{index}.weight", f"meta_net.{name}.weight", shape)
        ledger.enter(f"{ours}.meta.{index}.bias", f"meta_net.{name}.bias", shape[:1])
    return [CoCoOp(tokens=tokens, reduction=features // hidden)]


def maple(ledger: Ledger, options: Options) -> list[Method]:
    """Enter the text's prompts of MaPLe, and the linear maps to those of vision."""
    layout = LAYOUTS[options.model]
    tokens, width = ledger.shape("ctx", 2)
    features, _ = ledger.shape(r"proj\.weight", 2)
    text, vision = f"{layout.at('text', 'prompt')}.maple", f"{layout.at('vision', 'tokens')}.maple"
    depth = 1 + ledger.count(r"compound_prompts_text\.(\d+)")
    ledger.enter(f"{text}.context", "ctx", (tokens, width))
    names = [f"compound_prompts_text.{i}" for i in range(depth - 1)]
    _stack(ledger, f"{text}.deep", names, (tokens, width))
    maps = ["proj", *(f"compound_prompt_projections.{i}" for i in range(depth - 1))]
    for i, name in enumerate(maps):
        ledger.enter(f"{vision}.maps.{i}.weight", f"{name}.weight", (features, width))
        ledger.enter(f"{vision}.maps.{i}.bias", f"{name}.bias", (features,))
    return [MaPLe(tokens=tokens, layers=f"first:{depth}", **_words(tokens, options))]


def independent(ledger: Ledger, options: Options) -> list[Method]:
    """Enter prompts of both towers or of one: IVLP and VPT, and PromptSRC, which keeps a frozen copy beside them."""
    layout, family = LAYOUTS[options.model], PromptSRC if r"ZS_image_encoder\..*" in ledger else IVLP
    towers: dict[str, tuple[int, int]] = {}
    for tower, encoder, first in (("text", "text_encoder", "ctx"), ("vision", "image_encoder", "image_encoder.VPT")):
        if first not in ledger.values:
            continue
        shape = ledger.shape(re.escape(first), 2)
        depth = max(1, ledger.count(rf"{encoder}\.transformer\.resblocks\.(\d+)\.VPT_shallow"))
        deep = [f"{encoder}.transformer.resblocks.{i}.VPT_shallow" for i in range(1, depth)]
        towers[tower] = shape[0], depth
        if tower == "vision":
            _stack(ledger, f"{layout.at('vision', 'tokens')}.{family.name}.tokens", [first, *deep], shape)
        else:
            ledger.enter(f"{layout.at('text', 'prompt')}.{family.name}.context", first, shape)
            _stack(ledger, f"{layout.at('text', 'prompt')}.{family.name}.deep", deep, shape)
    return _planned(family, towers, options)


def clip_adapter(ledger: Ledger, options: Options) -> list[Method]:
    """Enter the bottleneck of CLIP-Adapter."""
    ours = f"{LAYOUTS[options.model].at('vision', 'features')}.clip_adapter"
    hidden, width = ledger.shape(r"fc\.0\.weight", 2)
    ledger.enter(f"{ours}.down.weight", "fc.0.weight", (hidden, width))
    ledger.enter(f"{ours}.up.weight", "fc.2.weight", (width, hidden))
    return [CLIPAdapter(reduction=width // hidden, ratio=options.ratio)]


def _planned(family: type[IVLP], towers: dict[str, tuple[int, int]], options: Options) -> list[Method]:
    """Return one method, or one per tower where they differ in depth."""
    tokens = {tower: count for tower, (count, _) in towers.items()}
    groups: dict[int, list[str]] = {}
    for tower, (_, depth) in towers.items():
        groups.setdefault(depth, []).append(tower)
    return [
        family(
            tokens=tokens["text"] if "text" in names else 0,
            vision_tokens=tokens["vision"] if "vision" in names else 0,
            layers=f"first:{depth}",
            **(_words(tokens["text"], options) if "text" in names else {}),
        )
        for depth, names in groups.items()
    ]


def _stack(ledger: Ledger, ours: str, names: list[str], shape: tuple[int, ...]) -> None:
    taken = [ledger.take(name, shape) for name in names]
    present = [value for value in taken if value is not None]
    if names and len(present) == len(names):
        ledger.tensors[ours] = torch.stack(present)


def _words(tokens: int, options: Options) -> dict[str, Any]:
    """Return the words that stay behind the learned ones; () for ids keeps the start from being looked up."""
    return {"init": options.init, "ids": ()} if tokens <= 4 else {}
