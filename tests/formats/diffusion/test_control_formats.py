"""ControlNet, T2I-Adapter and IP-Adapter in the files of diffusers and their authors, against diffusers' classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_diffusion import SIZE, denoise, diffusers, inputs, make_pipeline, make_unet
from torch import Tensor

import mmpeft
from mmpeft.formats import convert, export

CONTROL = {"method": "controlnet", "widths": (8, 16)}


def image(size: int = 16, channels: int = 3) -> Tensor:
    return torch.rand(2, channels, size, size, generator=torch.Generator().manual_seed(4))


def saved(tmp_path: Path, shaken: Any, method: Any, given: Any, large: bool = False) -> Tensor:
    """Write an adapter to ``ours``, and return what it computes."""
    unet = make_unet(large)
    adapters = mmpeft.adapt(unet, method)
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    with adapters.given({"main": given}):
        found = denoise(unet, large)
    assert (found - denoise(make_unet(large), large)).abs().max() > 1e-3
    return found


def returned(source: Path, tmp_path: Path, format: str, given: Any, large: bool = False, **options: Any) -> Tensor:
    """Read a file of another library and return what it computes in ours."""
    unet = make_unet(large)
    convert(source, tmp_path / "back", format, base=unet, **options)
    adapters = mmpeft.load(unet, tmp_path / "back")
    with adapters.given({"main": given}):
        return denoise(unet, large)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def controlled(net: Any, given: Tensor, large: bool = False) -> Tensor:
    """A UNet with a ControlNet of diffusers."""
    own = inputs(large)
    down, mid = net(**own, controlnet_cond=given, return_dict=False)
    return denoise(make_unet(large), large, down_block_additional_residuals=down, mid_block_additional_residual=mid)


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
def test_diffusers_loads_our_controlnet_and_we_load_it_back(tmp_path: Path, shaken: Any, large: bool) -> None:
    expected = saved(tmp_path, shaken, CONTROL, image(), large)
    export(tmp_path / "ours", tmp_path / "net", "controlnet", base=make_unet(large))
    net = diffusers.ControlNetModel.from_pretrained(tmp_path / "net")
    close(controlled(net.eval(), image(), large), expected)
    assert torch.equal(returned(tmp_path / "net", tmp_path, "controlnet", image(), large), expected)


def test_a_controlnet_that_diffusers_saved(tmp_path: Path, shaken: Any) -> None:
    """With mean states and channels as bgr."""
    net = diffusers.ControlNetModel.from_unet(
        make_unet(), conditioning_embedding_out_channels=(8, 16), controlnet_conditioning_channel_order="bgr"
    )
    shaken(list(net.parameters()))
    net.register_to_config(global_pool_conditions=True)
    net.eval().save_pretrained(tmp_path / "net")
    close(returned(tmp_path / "net", tmp_path, "controlnet", image()), controlled(net, image()))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_the_original_file_of_a_controlnet(tmp_path: Path, shaken: Any, suffix: str) -> None:
    """Four widths, as the original has; converted by diffusers, and read back from inside a whole Stable Diffusion."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    method = {"method": "controlnet", "widths": (4, 8, 16, 16)}
    expected = saved(tmp_path, shaken, method, image(64))
    path = tmp_path / f"control{suffix}"
    export(tmp_path / "ours", path, "controlnet_original", base=make_unet())
    file = load_file(path) if suffix == ".safetensors" else torch.load(path)
    config = {**SIZE, "conditioning_embedding_out_channels": (4, 8, 16, 16)}
    net = diffusers.ControlNetModel.from_unet(make_unet(), conditioning_embedding_out_channels=(4, 8, 16, 16))
    net.load_state_dict(convert_controlnet_checkpoint(dict(file), config))
    close(controlled(net.eval(), image(64)), expected)
    whole = {**file, "model.diffusion_model.out.0.weight": torch.zeros(32)}
    (save_file if suffix == ".safetensors" else torch.save)(whole, path)
    assert torch.equal(returned(path, tmp_path, "controlnet_original", image(64)), expected)
    assert "left out: 1 tensors" in json.loads((tmp_path / "back" / "mmpeft.json").read_text())["notes"][-1]


def test_a_controlnet_of_another_model_is_refused(tmp_path: Path, shaken: Any) -> None:
    saved(tmp_path, shaken, CONTROL, image(), True)
    export(tmp_path / "ours", tmp_path / "net", "controlnet", base=make_unet(True))
    with pytest.raises(ValueError, match=r"unexpected add_embedding\.linear_1\.weight"):
        convert(tmp_path / "net", tmp_path / "back", "controlnet", base=make_unet())


KINDS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "full": ({"factor": 4, "depth": 1}, 32, False),
    "gray": ({"factor": 4, "depth": 2, "channels": 1}, 32, False),
    "xl": ({"factor": 16, "depth": 2}, 64, True),
    "xl_middle": ({"factor": 16, "depth": 2, "middle": True}, 64, True),
}


def deep_unet(large: bool) -> Any:
    """Three blocks, the last two of one width; in the large one the first has no attention, as in SDXL."""
    torch.manual_seed(0)
    kinds = ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D")
    down = kinds if large else kinds[::-1]
    up = tuple(kind.replace("Down", "Up") for kind in down[::-1])
    size = {**SIZE, "block_out_channels": (32, 64, 64), "down_block_types": down, "up_block_types": up}
    return diffusers.UNet2DConditionModel(**size).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_diffusers_loads_our_t2i_adapter_and_we_load_it_back(tmp_path: Path, shaken: Any, kind: str) -> None:
    options, size, large = KINDS[kind]
    given, unet = image(size, options.get("channels", 3)), deep_unet(large)
    adapters = mmpeft.adapt(unet, {"method": "t2i_adapter", **options})
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    with adapters.given({"main": given}):
        expected = denoise(unet)
    export(tmp_path / "ours", tmp_path / "net", "t2i_adapter", base=deep_unet(large))
    net = diffusers.T2IAdapter.from_pretrained(tmp_path / "net")
    with torch.no_grad():
        maps = net(given)
    assert len(maps) == 3 + options.get("middle", False)
    close(denoise(deep_unet(large), down_intrablock_additional_residuals=list(maps)), expected)
    again = deep_unet(large)
    convert(tmp_path / "net", tmp_path / "back", "t2i_adapter", base=again)
    adapters = mmpeft.load(again, tmp_path / "back")
    with adapters.given({"main": given}):
        assert torch.equal(denoise(again), expected)


def test_a_light_t2i_adapter_that_diffusers_saved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = diffusers.T2IAdapter(
        channels=[32, 64], num_res_blocks=2, downscale_factor=4, adapter_type="light_adapter"
    ).eval()
    net.save_pretrained(tmp_path / "net")
    unet = deep_unet(False)
    convert(tmp_path / "net", tmp_path / "back", "t2i_adapter", base=unet)
    with torch.no_grad():
        expected = denoise(unet, down_intrablock_additional_residuals=net(image(32)))
    adapters = mmpeft.load(unet, tmp_path / "back")
    with adapters.given({"main": image(32)}):
        close(denoise(unet), expected)
    export(tmp_path / "back", tmp_path / "again", "t2i_adapter", base=deep_unet(False))
    again = diffusers.T2IAdapter.from_pretrained(tmp_path / "again").state_dict()
    assert all(torch.equal(value, again[key]) for key, value in net.state_dict().items())


PROMPTS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "base": ({"features": 12}, (2, 1, 12)),
    "plus": ({"features": 12, "tokens": 3, "resampler": True, "depth": 4, "heads": 1, "width": 16}, (2, 1, 6, 12)),
}


@torch.no_grad()
def prompted(unet: Any, features: Tensor, scale: float, large: bool) -> Tensor:
    """A UNet with an IP-Adapter of diffusers."""
    for processor in unet.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [scale]
    own = inputs(large)
    added = {**own.get("added_cond_kwargs", {}), "image_embeds": [features]}
    return denoise(unet, large, added_cond_kwargs=added)


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
@pytest.mark.parametrize("kind", PROMPTS)
def test_diffusers_loads_our_ip_adapter_and_we_load_it_back(
    tmp_path: Path, shaken: Any, kind: str, suffix: str, large: bool
) -> None:
    options, shape = PROMPTS[kind]
    features = torch.randn(shape, generator=torch.Generator().manual_seed(5))
    given = features if kind == "base" else features[:, 0]
    expected = saved(tmp_path, shaken, {"method": "ip_adapter", **options}, given, large)
    path = tmp_path / f"ip{suffix}"
    export(tmp_path / "ours", path, "ip_adapter", base=make_unet(large))
    theirs = make_unet(large)
    theirs._load_ip_adapter_weights(nested(path), low_cpu_mem_usage=False)
    close(prompted(theirs, features, 1.0, large), expected)
    assert torch.equal(returned(path, tmp_path, "ip_adapter", given, large), expected)
    ours = make_unet(large)
    adapters = mmpeft.load(ours, tmp_path / "back")
    for scale in (0.5, 1.3):
        adapters.activate("main", weights=[scale])
        with adapters.given({"main": given}):
            close(denoise(ours, large), prompted(theirs, features, scale, large))


def nested(path: Path) -> Any:
    if path.suffix == ".bin":
        return torch.load(path)
    found: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for key, value in load_file(path).items():
        part, _, name = key.partition(".")
        found[part][name] = value
    return found


def test_an_ip_adapters_factor_goes_into_the_values(tmp_path: Path, shaken: Any) -> None:
    features = torch.randn(2, 12)
    expected = saved(tmp_path, shaken, {"method": "ip_adapter", "features": 12, "scale": 0.7}, features)
    export(tmp_path / "ours", tmp_path / "ip.bin", "ip_adapter", base=make_unet())
    close(returned(tmp_path / "ip.bin", tmp_path, "ip_adapter", features), expected)


def test_an_ip_adapter_of_some_layers_has_no_file(tmp_path: Path) -> None:
    unet = make_unet()
    mmpeft.adapt(unet, {"method": "ip_adapter", "features": 12, "layers": [0]}).save(tmp_path / "ours")
    with pytest.raises(ValueError, match="needs all 4 layers, not 1"):
        export(tmp_path / "ours", tmp_path / "ip.bin", "ip_adapter", base=unet)


def test_a_part_of_a_pipeline_is_found_by_its_name(tmp_path: Path, shaken: Any) -> None:
    """Trained on a UNet alone, and imported for a pipeline."""
    expected = saved(tmp_path, shaken, CONTROL, image())
    export(tmp_path / "ours", tmp_path / "net", "controlnet", base=make_unet())
    pipeline = make_pipeline(tmp_path)
    convert(tmp_path / "net", tmp_path / "back", "controlnet", base=pipeline)
    adapters = mmpeft.load(pipeline, tmp_path / "back")
    with adapters.given({"main": image()}):
        assert torch.equal(denoise(pipeline.unet), expected)
