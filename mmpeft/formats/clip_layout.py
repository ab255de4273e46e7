"""Where CLIP models of the libraries keep their towers: checkpoints of OpenAI's CLIP fit all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Library = Literal["open_clip", "open_clip_custom_text", "transformers"]


@dataclass(frozen=True)
class ClipLayout:
    """Paths of one kind of CLIP model: the blocks of its towers, and the projections inside a block."""

    vision: str
    text: str
    attention: str
    out: str = "out_proj"
    projection: str = "{}"

    def block(self, tower: str, index: int) -> str:
        """Return the path of a block."""
        return f"{self.vision if tower == 'vision' else self.text}.{index}"

    def project(self, tower: str, index: int, name: str) -> str:
        """Return the path of ``q``, ``k``, ``v`` or ``out``."""
        last = self.out if name == "out" else self.projection.format(name)
        return f"{self.block(tower, index)}.{self.attention}.{last}"


LAYOUTS: dict[str, ClipLayout] = {
    "open_clip": ClipLayout("visual.transformer.resblocks", "transformer.resblocks", "attn"),
    "open_clip_custom_text": ClipLayout("visual.transformer.resblocks", "text.transformer.resblocks", "attn"),
    "transformers": ClipLayout(
        "vision_model.encoder.layers", "text_model.encoder.layers", "self_attn", projection="{}_proj"
    ),
}
