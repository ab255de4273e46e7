"""Where CLIP models of the libraries keep their towers: checkpoints of OpenAI's CLIP fit all of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Library = Literal["open_clip", "open_clip_custom_text", "transformers"]


@dataclass(frozen=True)
class ClipLayout:
    """Paths of one kind of CLIP model: the roots of its towers, the blocks below, the projections in a block."""

    vision: str
    text: str
    blocks: str
    attention: str
    projection: str = "{}"

    def at(self, tower: str, name: str) -> str:
        """Return the path of something below the root of a tower."""
        return f"{self.vision if tower == 'vision' else self.text}.{name}".lstrip(".")

    def project(self, tower: str, block: int, name: str) -> str:
        """Return the path of ``q``, ``k``, ``v`` or ``out`` in a block."""
        last = "out_proj" if name == "out" else self.projection.format(name)
        return self.at(tower, f"{self.blocks}.{block}.{self.attention}.{last}")


LAYOUTS: dict[str, ClipLayout] = {
    "open_clip": ClipLayout("visual", "", "transformer.resblocks", "attn"),
    "open_clip_custom_text": ClipLayout("visual", "text", "transformer.resblocks", "attn"),
    "transformers": ClipLayout("vision_model", "text_model", "encoder.layers", "self_attn", "{}_proj"),
}
