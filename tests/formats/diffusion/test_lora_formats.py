"""LoRA as diffusers, kohya and ComfyUI write it: written, read back, and loaded by diffusers, it computes the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_diffusion import denoise, diffusers, encode, make_pipeline, make_unet

import mmpeft
from mmpeft.formats import convert, export

FILES = {"diffusers_lora": "lora", "kohya": "lora.safetensors", "comfyui": "lora.safetensors"}
METHODS: dict[str, Any] = {
    "lora": [
        {"method": "lora", "rank": 4, "alpha": 6, "targets": ["attn.*", "mlp.down"]},
        {"method": "lora", "rank": 4, "alpha": 6, "targets": ["cross.*", "mlp.gate_up"], "towers": "unet"},
    ],
    "dora": {"method": "dora", "rank": 2, "alpha": 3, "targets": ["attn.q", "mlp.down"]},
    "slices": {"method": "lora", "rank": 2, "alpha": 5, "targets": ["mlp.up", "attn.v"]},
    "rslora": {"method": "lora", "rank": 4, "alpha": 3, "rank_stabilized": True},
    "mixed": [
        {"method": "lora", "rank": 2, "alpha": 4, "targets": "attn.q"},
        {"method": "lora", "rank": 3, "targets": "attn.v", "towers": "unet"},
    ],
}
BROKEN = {
    ("kohya", "dora"): "leaves the magnitudes in kohya's files out",
    ("kohya", "mixed"): "forgets kohya's alphas where they differ between layers",
    ("kohya", "slices"): "forgets kohya's alphas where they differ between layers",
    ("kohya", "rslora"): "reads a kohya file of a text encoder only where out_proj is in it",
}


def outputs(pipeline: Any, large: bool) -> list[torch.Tensor]:
    encoders = [pipeline.text_encoder, *([pipeline.text_encoder_2] if large else [])]
    return [denoise(pipeline.unet, large), *map(encode, encoders)]


def same(found: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    for own, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(own, wanted, atol=1e-5, rtol=1e-5)


def saved(tmp_path: Path, shaken: Any, methods: Any, large: bool) -> list[torch.Tensor]:
    """Write an adapter to ``ours``, and return what it computes."""
    pipeline = make_pipeline(tmp_path, large)
    frozen = outputs(pipeline, large)
    adapters = mmpeft.adapt(pipeline, methods)
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    found = outputs(pipeline, large)
    assert all((own - before).abs().max() > 1e-3 for own, before in zip(found, frozen, strict=True))
    return found


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", FILES)
def test_it_comes_back(tmp_path: Path, shaken: Any, format: str, method: str, large: bool) -> None:
    expected = saved(tmp_path, shaken, METHODS[method], large)
    base = make_pipeline(tmp_path, large)
    export(tmp_path / "ours", tmp_path / FILES[format], format, base=base)
    convert(tmp_path / FILES[format], tmp_path / "back", format, base=base)
    mmpeft.load(base, tmp_path / "back")
    same(outputs(base, large), expected)


@pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("format", ["diffusers_lora", "kohya"])
def test_a_pipeline_of_diffusers_loads_it(tmp_path: Path, shaken: Any, format: str, method: str, large: bool) -> None:
    if (format, method) in BROKEN:
        pytest.skip(f"diffusers {BROKEN[format, method]}")
    expected = saved(tmp_path, shaken, METHODS[method], large)
    pipeline = make_pipeline(tmp_path, large)
    export(tmp_path / "ours", tmp_path / FILES[format], format, base=pipeline)
    pipeline.load_lora_weights(str(tmp_path / FILES[format]))
    same(outputs(pipeline, large), expected)


def test_a_file_of_diffusers_keeps_its_alpha(tmp_path: Path, shaken: Any) -> None:
    """Written by diffusers' own ``save_lora_adapter``, without the prefix of a pipeline."""
    from peft import LoraConfig

    unet = make_unet()
    unet.add_adapter(LoraConfig(r=4, lora_alpha=9, target_modules=["to_q", "to_v", "ff.net.0.proj"]))
    shaken([p for name, p in unet.named_parameters() if "lora_" in name])
    unet.save_lora_adapter(tmp_path / "theirs")
    base = make_unet()
    convert(tmp_path / "theirs", tmp_path / "ours", "diffusers_lora", base=base)
    mmpeft.load(base, tmp_path / "ours")
    same([denoise(base)], [denoise(unet)])


def old_names(state: dict[str, Any], spelling: str) -> dict[str, Any]:
    """Names as training scripts write them today, and as attention processors of diffusers 0.20 had them."""
    found = {}
    for key, value in state.items():
        if spelling == "scripts":
            own = key.replace("lora_A", "lora.down").replace("lora_B", "lora.up")
        else:
            layer, _, end = key.rpartition(".lora_")
            parent, _, name = layer.replace("to_out.0", "to_out").rpartition(".")
            if key.startswith("text"):
                own = f"{parent}.{name.replace('_proj', '').replace('q', 'to_q').replace('v', 'to_v')}_lora."
            else:
                own = f"{parent}.processor.{name}_lora."
            own += {"A.weight": "down.weight", "B.weight": "up.weight"}[end]
        found[own] = value
    return found


@pytest.mark.parametrize("spelling", ["scripts", "processors"])
def test_older_names_are_read(tmp_path: Path, shaken: Any, spelling: str) -> None:
    method = {"method": "lora", "rank": 2, "targets": ["attn.q", "attn.v"]}
    expected = saved(tmp_path, shaken, method, False)
    base = make_pipeline(tmp_path)
    export(tmp_path / "ours", tmp_path / "lora", "diffusers_lora", base=base)
    state = load_file(tmp_path / "lora" / "pytorch_lora_weights.safetensors")
    save_file(old_names(state, spelling), tmp_path / "old.safetensors")
    notes = convert(tmp_path / "old.safetensors", tmp_path / "back", "diffusers_lora", base=base)
    assert any("alpha" in note for note in notes)
    mmpeft.load(base, tmp_path / "back")
    same(outputs(base, False), expected)


@pytest.mark.parametrize("text", ["3", "[", "[" * 10**5, '["r"]', '{"r": "x"}', '{"unet.r": 1e400}'])
def test_metadata_of_another_kind_is_one_error(tmp_path: Path, shaken: Any, text: str) -> None:
    unet = make_unet()
    shaken(mmpeft.adapt(unet, {"method": "lora", "rank": 2}).parameters())
    mmpeft.adapters(unet).save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "lora", "diffusers_lora", base=make_unet())
    path = tmp_path / "lora" / "pytorch_lora_weights.safetensors"
    save_file(load_file(path), path, metadata={"lora_adapter_metadata": text})
    with pytest.raises(ValueError, match=r"pytorch_lora_weights\.safetensors"):
        convert(path, tmp_path / "back", "diffusers_lora", base=make_unet())


def test_kohya_says_rank_and_alpha_in_the_header(tmp_path: Path, shaken: Any) -> None:
    saved(tmp_path, shaken, METHODS["lora"], True)
    export(tmp_path / "ours", tmp_path / "k.safetensors", "kohya", base=make_pipeline(tmp_path, True))
    with safe_open(tmp_path / "k.safetensors", "pt") as file:
        header, names = file.metadata(), list(file.keys())
    assert (header["ss_network_dim"], header["ss_network_alpha"]) == ("4", "6")
    assert header["ss_network_module"] == "networks.lora"
    assert any(name.startswith("lora_unet_input_blocks_3_1_transformer_blocks_1_attn2_to_out_0.") for name in names)
    assert {name.split("_text")[0] for name in names if "text_model" in name} == {"lora_te1", "lora_te2"}


def test_comfyui_adds_the_deltas_to_the_original_weights(tmp_path: Path, shaken: Any) -> None:
    """W + alpha / rank B A under the original names is what our adapter merges into."""
    from mmpeft.formats.diffusion.native_names import native_names

    saved(tmp_path, shaken, METHODS["lora"], True)
    unet = make_unet(True)
    base = make_pipeline(tmp_path, True)
    export(tmp_path / "ours", tmp_path / "c.safetensors", "comfyui", base=base)
    file = load_file(tmp_path / "c.safetensors")
    state = unet.state_dict()
    named = {name: path for path, name in native_names(unet).items()}
    layers = {
        key.removesuffix(".alpha") for key in file if key.endswith(".alpha") and key.startswith("diffusion_model")
    }
    for layer in layers:
        a, b, alpha = (file[f"{layer}.{end}"] for end in ("lora_A.weight", "lora_B.weight", "alpha"))
        state[f"{named[layer.removeprefix('diffusion_model.')]}.weight"] += alpha / len(a) * b @ a
    unet.load_state_dict(state)
    mmpeft.load(base, tmp_path / "ours")
    assert layers
    same([denoise(unet, True)], [denoise(base.unet, True)])


def kohya_file(tmp_path: Path, shaken: Any) -> dict[str, Any]:
    saved(tmp_path, shaken, METHODS["lora"], False)
    export(tmp_path / "ours", tmp_path / "k.safetensors", "kohya", base=make_pipeline(tmp_path))
    return load_file(tmp_path / "k.safetensors")


def refused(tmp_path: Path, state: dict[str, Any], base: Any) -> str:
    save_file(state, tmp_path / "changed.safetensors")
    with pytest.raises(ValueError) as error:
        convert(tmp_path / "changed.safetensors", tmp_path / "back", "kohya", base=base)
    assert not (tmp_path / "back").exists()
    return str(error.value)


def test_no_matching_key_is_an_error_that_names_near_ones(tmp_path: Path, shaken: Any) -> None:
    state = kohya_file(tmp_path, shaken)
    said = refused(tmp_path, {key.replace("_down_", "_dwon_"): v for key, v in state.items() if "_down_" in key},
                   make_unet())  # fmt: skip
    assert "no name in it is one of the model's" in said
    assert "did you mean 'lora_unet_down_blocks_0" in said


def test_every_problem_of_a_file_is_named(tmp_path: Path, shaken: Any) -> None:
    state = kohya_file(tmp_path, shaken)
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    del state[f"{name}.lora_up.weight"]
    other = name.replace("to_q", "to_v")
    state[f"{other}.lora_down.weight"] = torch.zeros(4, 7)
    state["lora_unet_mid_block_resnets_0_conv1.hada_w1_a"] = torch.zeros(1)
    said = refused(tmp_path, state, make_pipeline(tmp_path))
    assert f"{name}: without its up projection" in said
    assert f"{other}: down (4, 7)" in said
    assert "LoHa, 1 tensors such as lora_unet_mid_block_resnets_0_conv1.hada_w1_a" in said


def test_a_layer_without_a_site_is_named(tmp_path: Path) -> None:
    name = "lora_te2_text_projection"
    state = {f"{name}.lora_down.weight": torch.ones(2, 20), f"{name}.lora_up.weight": torch.ones(20, 2)}
    said = refused(tmp_path, state, make_pipeline(tmp_path, True))
    assert f"{name}: text_encoder_2.text_projection is no site of LoRA" in said


def test_a_diffusion_transformer(tmp_path: Path, shaken: Any) -> None:
    """SD3's joint attention, its text stream and feed-forwards, under ``transformer.``; read by diffusers."""

    def make() -> Any:
        torch.manual_seed(0)
        return diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=12, caption_projection_dim=16, pooled_projection_dim=6, out_channels=4,
        ).eval()  # fmt: skip

    @torch.no_grad()
    def run(model: Any) -> torch.Tensor:
        made = torch.Generator().manual_seed(3)
        sample, states, pooled = (torch.randn(s, generator=made) for s in ((2, 4, 8, 8), (2, 5, 12), (2, 6)))
        output: torch.Tensor = model(sample, states, pooled, torch.tensor([7, 7])).sample
        return output

    model = make()
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, alpha=5, targets=("attn.*", "context.*", "mlp.*")))
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "lora", "diffusers_lora", base=make())
    theirs, back = make(), make()
    theirs.load_lora_adapter(tmp_path / "lora", prefix="transformer", use_safetensors=True)
    same([run(theirs)], [run(model)])
    convert(tmp_path / "lora", tmp_path / "back", "diffusers_lora", base=back)
    mmpeft.load(back, tmp_path / "back")
    assert torch.equal(run(back), run(model))


def test_the_model_is_needed(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="base: format kohya names the parts of a model"):
        convert(tmp_path, tmp_path / "back", "kohya")


def test_another_method_has_no_place(tmp_path: Path, shaken: Any) -> None:
    unet = make_unet()
    mmpeft.adapt(unet, "ia3").save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"format kohya has no place for Scale \(of ia3\)"):
        export(tmp_path / "ours", tmp_path / "k.safetensors", "kohya", base=unet)
