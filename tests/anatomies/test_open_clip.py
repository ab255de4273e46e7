"""open_clip's towers: the text tower of a plain CLIP has the model's own root, and is still only the text tower."""

from __future__ import annotations

import pytest
import torch
from open_clip.model import CLIP, CustomTextCLIP

import mmpeft

SIZE = {"layers": 2, "width": 32}
VISION = {"image_size": 32, "patch_size": 8, "head_width": 16, **SIZE}
TEXT = {"context_length": 9, "vocab_size": 50, "heads": 2, **SIZE}


@pytest.mark.parametrize("cls", [CLIP, CustomTextCLIP])
@pytest.mark.parametrize("method", ["bitfit", "full_fine_tuning", "lora", "norm_tuning"])
@torch.no_grad()
def test_a_method_stays_in_its_tower(cls: type[torch.nn.Module], method: str) -> None:
    model = cls(16, VISION, TEXT).eval().requires_grad_(False)
    images, words = torch.randn(2, 3, 32, 32), torch.randint(1, 50, (2, 9))
    towers = {"vision": lambda: model.encode_image(images), "text": lambda: model.encode_text(words)}
    frozen = {name: run() for name, run in towers.items()}
    for name, other in (("vision", "text"), ("text", "vision")):
        adapters = mmpeft.adapt(model, {"method": method, "towers": name})
        for parameter in adapters.parameters():
            parameter.add_(0.1)
        assert not torch.equal(towers[name](), frozen[name])
        assert torch.equal(towers[other](), frozen[other])
        adapters.remove()
