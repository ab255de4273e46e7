"""LoRA of convolutions (LoCon): against HF peft, and through the files of diffusers, kohya, ComfyUI and peft."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_diffusion import denoise, inputs, make_unet

import mmpeft
from mmpeft.formats import convert, export

peft = pytest.importorskip("peft")
FILES = {"diffusers_lora": "lora", "kohya": "lora.safetensors", "comfyui": "lora.safetensors"}
NAMES = ("conv_in", "conv_out", "resnet.*", "downsample", "upsample", "proj_in", "proj_out", "attn.q")
MODULES = ["conv_in", "conv_out", "conv1", "conv2", "conv_shortcut", "time_emb_proj", "downsamplers.0.conv"]
MODULES += ["upsamplers.0.conv", "proj_in", "proj_out", "attn1.to_q"]
METHODS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora", "rank": 3, "alpha": 5, "targets": NAMES},
    "dora": {"method": "dora", "rank": 2, "alpha": 3, "targets": NAMES},
}


def close(left: Any, right: Any, tolerance: float = 1e-5) -> None:
    torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


def saved(tmp_path: Path, shaken: Any, method: str, large: bool = False) -> torch.Tensor:
    """Write an adapter to ``ours``, and return what it computes."""
    unet = make_unet(large)
    frozen = denoise(unet, large)
    adapters = mmpeft.adapt(unet, METHODS[method])
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    found = denoise(unet, large)
    assert (found - frozen).abs().max() > 1e-2
    return found


@pytest.mark.parametrize("method", METHODS)
def test_forward_gradients_and_merge_are_those_of_peft(tmp_path: Path, shaken: Any, method: str) -> None:
    options = {"r": METHODS[method]["rank"], "lora_alpha": METHODS[method]["alpha"], "use_dora": method == "dora"}
    theirs = peft.get_peft_model(make_unet().double(), peft.LoraConfig(target_modules=MODULES, **options))
    shaken([p for name, p in theirs.named_parameters() if "lora_" in name])
    theirs.save_pretrained(tmp_path / "theirs")
    ours = make_unet().double()
    adapters = mmpeft.load(ours, tmp_path / "theirs", trainable=True)
    arguments = {key: v.double() if v.is_floating_point() else v for key, v in inputs().items()}
    outputs = [model(**arguments).sample for model in (ours, theirs.base_model.model)]
    close(*outputs)
    for output in outputs:
        output.square().sum().backward()
    expected = {name.replace("base_model.model.", "").replace(".default", ""): p.grad
                for name, p in theirs.named_parameters() if p.requires_grad}  # fmt: skip
    found = {key.removeprefix("main."): p.grad for key, p in adapters.named_parameters()}
    assert len(found) == len(expected)
    for key, grad in found.items():
        layer, _, name = key.rsplit(".", 2)
        ends = ".lora_magnitude_vector" if name == "magnitude" else f".{name}"
        close(grad.flatten(), expected[f"{layer}{ends}.weight"].flatten())
    adapters.merge()
    merged = theirs.merge_and_unload().state_dict()
    for key, value in ours.state_dict().items():
        if not key.startswith("mmpeft."):
            close(value, merged[key])


@pytest.mark.parametrize("method", METHODS)
def test_peft_loads_our_directory(tmp_path: Path, shaken: Any, method: str) -> None:
    expected = saved(tmp_path, shaken, method)
    theirs = peft.PeftModel.from_pretrained(make_unet(), tmp_path / "ours").base_model.model
    close(denoise(theirs), expected)
    ours = make_unet()
    mmpeft.load(ours, tmp_path / "ours")
    assert torch.equal(denoise(ours), expected)


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", FILES)
def test_it_comes_back(tmp_path: Path, shaken: Any, format: str, method: str, large: bool) -> None:
    expected = saved(tmp_path, shaken, method, large)
    base = make_unet(large)
    export(tmp_path / "ours", tmp_path / FILES[format], format, base=base)
    convert(tmp_path / FILES[format], tmp_path / "back", format, base=base)
    mmpeft.load(base, tmp_path / "back")
    close(denoise(base, large), expected)


@pytest.mark.parametrize("method", METHODS)
def test_diffusers_loads_our_file(tmp_path: Path, shaken: Any, method: str) -> None:
    expected, unet = saved(tmp_path, shaken, method), make_unet()
    export(tmp_path / "ours", tmp_path / "lora", "diffusers_lora", base=unet)
    unet.load_lora_adapter(tmp_path / "lora", prefix="unet", use_safetensors=True)
    close(denoise(unet), expected)


def test_diffusers_loads_our_kohya_file(tmp_path: Path, shaken: Any) -> None:
    from diffusers import StableDiffusionPipeline

    expected, unet = saved(tmp_path, shaken, "lora"), make_unet()
    export(tmp_path / "ours", tmp_path / "k.safetensors", "kohya", base=unet)
    names = load_file(tmp_path / "k.safetensors")
    assert names["lora_unet_mid_block_resnets_0_conv1.lora_down.weight"].shape == (3, 64, 3, 3)
    assert names["lora_unet_mid_block_resnets_0_conv1.lora_up.weight"].shape == (64, 3, 1, 1)
    state, alphas = StableDiffusionPipeline.lora_state_dict(str(tmp_path / "k.safetensors"))
    StableDiffusionPipeline.load_lora_into_unet(state, alphas, unet)
    close(denoise(unet), expected)


def test_a_file_of_diffusers_is_read(tmp_path: Path, shaken: Any) -> None:
    unet = make_unet()
    unet.add_adapter(peft.LoraConfig(r=4, lora_alpha=9, target_modules=MODULES))
    shaken([p for name, p in unet.named_parameters() if "lora_" in name])
    unet.save_lora_adapter(tmp_path / "theirs")
    base = make_unet()
    convert(tmp_path / "theirs", tmp_path / "ours", "diffusers_lora", base=base)
    mmpeft.load(base, tmp_path / "ours")
    close(denoise(base), denoise(unet))


def test_linear_projections_take_the_deltas_of_1_x_1_convolutions(tmp_path: Path, shaken: Any) -> None:
    """SDXL's transformers have linear layers where those of SD 1.5 have convolutions; some files hold both as 4-D."""
    expected, base = saved(tmp_path, shaken, "lora", True), make_unet(True)
    export(tmp_path / "ours", tmp_path / "k.safetensors", "kohya", base=base)
    state = load_file(tmp_path / "k.safetensors")
    for key, value in state.items():
        if "_proj_in" in key and value.ndim == 2:
            state[key] = value[..., None, None]
    save_file(state, tmp_path / "changed.safetensors")
    convert(tmp_path / "changed.safetensors", tmp_path / "back", "kohya", base=base)
    mmpeft.load(base, tmp_path / "back")
    close(denoise(base, True), expected)


def test_shapes_that_do_not_fit_are_named(tmp_path: Path) -> None:
    name = "lora_unet_mid_block_resnets_0_conv1"
    state = {f"{name}.lora_down.weight": torch.ones(2, 64, 1, 1), f"{name}.lora_up.weight": torch.ones(64, 2, 1, 1)}
    save_file(state, tmp_path / "k.safetensors")
    with pytest.raises(ValueError, match=r"conv1: down \(2, 64, 1, 1\) and up .* a layer of \(64, 64, 3, 3\)"):
        convert(tmp_path / "k.safetensors", tmp_path / "back", "kohya", base=make_unet())
    state[f"{name}.lora_down.weight"] = torch.ones(2, 64, 3, 3)
    state[f"{name}.dora_scale"] = torch.ones(1, 64, 1, 1)
    save_file(state, tmp_path / "k.safetensors")
    with pytest.raises(ValueError, match=r"magnitudes \(1, 64, 1, 1\), expected one for each of 64 rows"):
        convert(tmp_path / "k.safetensors", tmp_path / "back", "kohya", base=make_unet())
