"""Files that look like a format's and hold something else: each is named for what it is."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny_pipelines
import torch
from safetensors.torch import save_file
from tiny_diffusion import make_unet

import mmpeft
from mmpeft.formats import convert, export

NAMES = {
    "kohya": "lora_unet_double_blocks_0_img_attn_qkv",
    "comfyui": "diffusion_model.double_blocks.0.img_attn.qkv",
}


@pytest.mark.parametrize("format", NAMES)
def test_files_of_a_transformer_are_named(format: str, tmp_path: Path) -> None:
    pipeline = tiny_pipelines.flux()
    values = {"lora_down.weight": torch.ones(4, 16), "lora_up.weight": torch.ones(48, 4), "alpha": torch.tensor(2.0)}
    path = tmp_path / "x.safetensors"
    save_file({f"{NAMES[format]}.{end}": value for end, value in values.items()}, path)
    for base in (pipeline, pipeline.transformer):
        with pytest.raises(ValueError, match=r"is a layer of a diffusion transformer.*format diffusers_lora"):
            convert(path, tmp_path / "out", format, base=base)
    save_file({"nothing": torch.ones(1)}, path)
    with pytest.raises(ValueError, match="the model is transformer"):
        convert(path, tmp_path / "out", format, base=pipeline.transformer)
    mmpeft.adapt(pipeline, mmpeft.LoRA(rank=2, towers="transformer")).save(tmp_path / "ours")
    with pytest.raises(ValueError, match=rf"format {format} has no names for \d+ of the layers.*diffusers_lora"):
        export(tmp_path / "ours", path, format, base=pipeline)


@pytest.mark.parametrize(
    ("end", "kind"),
    [("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("oft_blocks", "OFT"), ("oft_diag", "OFT"), ("diff", "differences")],
)
@pytest.mark.parametrize("format", ["kohya", "comfyui", "diffusers_lora"])
def test_other_updates_are_one_line(format: str, end: str, kind: str, tmp_path: Path) -> None:
    layers = [f"lora_unet_mid_block_attentions_0_transformer_blocks_0_attn{n}_to_q" for n in (1, 2)]
    save_file({f"{layer}.{end}": torch.ones(2, 2) for layer in layers}, tmp_path / "x.safetensors")
    said = rf"can't be loaded:\n  {kind}.*, 2 tensors such as .*only LoRA and DoRA"
    with pytest.raises(ValueError, match=said) as error:
        convert(tmp_path / "x.safetensors", tmp_path / "out", format, base=make_unet())
    assert len(str(error.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["image_proj.proj.0.weight", "image_proj.norm.weight", "ip_adapter.1.to_q_lora.down.weight"], "FaceID "),
        (["image_proj.perceiver_resampler.proj_in.weight", "image_proj.norm.weight"], "FaceID Plus"),
        (["image_proj.proj.0.weight", "image_proj.proj.3.weight"], "Full Face"),
    ],
)
def test_other_ip_adapters_are_named(names: list[str], kind: str, tmp_path: Path) -> None:
    save_file({name: torch.ones(2, 2) for name in names}, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=rf"can't be loaded:\n  IP-Adapter {kind}.*only IP-Adapter and Plus"):
        convert(tmp_path / "x.safetensors", tmp_path / "out", "ip_adapter", base=make_unet())
