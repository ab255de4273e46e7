"""T2I-Adapter's maps join where each UNet takes them: as diffusers' own adapters make them for that UNet."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_pipelines import unet

import mmpeft

PLAIN, CROSS = "DownBlock2D", "CrossAttnDownBlock2D"
LAYOUTS: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {
    "sd": ((CROSS, CROSS, PLAIN), (1, 2, 4)),
    "sdxl": ((PLAIN, CROSS, CROSS), (2, 2, 4)),
    "tiny_sd": ((PLAIN, CROSS, PLAIN), (2, 2, 4)),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_maps_fit(layout: str) -> None:
    down, strides = LAYOUTS[layout]
    torch.manual_seed(0)
    up = tuple(name.replace("Down", "Up") for name in reversed(down))
    model: Any = unet(block_out_channels=(8, 16, 32), down_block_types=down, up_block_types=up).eval()
    first = strides[0] * 2
    adapters = mmpeft.adapt(model, mmpeft.T2IAdapter(factor=first, depth=1), name="maps")
    (edit,) = adapters._edits("maps")
    image = torch.rand(1, 3, 16, 16)
    assert [8 // found.shape[-1] for found in edit.maps(image)] == list(strides)
    sample, text = torch.randn(1, 4, 8, 8), torch.randn(1, 3, 24)
    with torch.no_grad(), adapters.given({"maps": image}):
        changed = model(sample, 5, text).sample
        with adapters.off():
            plain = model(sample, 5, text).sample
        theirs = list(edit.maps(image))
        with adapters.off():
            expected = model(sample, 5, text, down_intrablock_additional_residuals=theirs).sample
    torch.testing.assert_close(changed, expected)
    assert not torch.allclose(changed, plain)
