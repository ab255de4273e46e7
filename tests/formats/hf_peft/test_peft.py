"""Both ways between mmpeft and the installed HF peft, on a timm ViT: equal outputs, or a refusal."""

from __future__ import annotations

import json
import shutil

import peft
import pytest
import torch
from peft import IA3Config, LoraConfig
from safetensors.torch import load_file, save_file

import mmpeft
from mmpeft import IA3, DoRA, LinearProbe, LoRA
from mmpeft.formats import convert, export
from mmpeft.handle.loading import load_peft

OURS = {
    "lora on slices": LoRA(rank=4, alpha=10),
    "lora on k alone": LoRA(targets=("attn.k",), layers="last:2"),
    "lora on the fused layer": LoRA(targets=("attn.qkv",)),
    "lora everywhere": LoRA(targets="all", alpha=16),
    "lora on slices and their whole": LoRA(targets=("attn.q", "attn.qkv"), alpha=3),
    "rslora on slices": LoRA(rank_stabilized=True, alpha=16),
    "rslora of several ranks": LoRA(rank=3, rank_stabilized=True, alpha=7, targets=("attn.q", "attn.v", "mlp.up")),
    "dora on slices": DoRA(alpha=12),
    "dora everywhere": DoRA(targets="all"),
    "ia3": IA3(),
    "ia3 on the fused layer": IA3(targets=("attn.qkv", "attn.out"), feedforward=()),
    "lora and head": [LoRA(), LinearProbe()],
    "ia3 and head": [IA3(), LinearProbe()],
    "two loras": [LoRA(rank=2), LoRA(rank=4, alpha=9, targets=("mlp.*",))],
}

THEIRS = {
    "fused": LoraConfig(r=4, lora_alpha=9, target_modules=["qkv"]),
    "all": LoraConfig(r=4, target_modules="all-linear", exclude_modules=["head"]),
    "expression": LoraConfig(target_modules=r"blocks\.[01]\.mlp\.fc\d", lora_alpha=3, use_rslora=True),
    "patterns": LoraConfig(
        target_modules=["qkv", "fc1"],
        rank_pattern={"fc1": 2, r"blocks\.0\.attn\.qkv": 5},
        alpha_pattern={"qkv": 5.5},
        init_lora_weights="gaussian",
    ),
    "dora": LoraConfig(target_modules=["qkv", "fc2"], use_dora=True, lora_dropout=0.1),
    "one layer and head": LoraConfig(
        target_modules=["qkv"], layers_to_transform=[1], layers_pattern="blocks", modules_to_save=["head"]
    ),
    "ia3": IA3Config(target_modules=["qkv", "fc2"], feedforward_modules=["fc2"]),
    "ia3 on outputs, and head": IA3Config(target_modules=["qkv"], feedforward_modules=[], modules_to_save=["head"]),
}


def write_theirs(config, vit, shaken, directory):
    model = peft.get_peft_model(vit(), config).eval()
    shaken([parameter for parameter in model.parameters() if parameter.requires_grad])
    model.save_pretrained(directory)
    return model


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("methods", OURS.values(), ids=OURS)
def test_peft_loads_what_we_save(methods, vit, adapted, images, tmp_path):
    model, handle = adapted(methods)
    expected = model(images)
    assert (expected - vit()(images)).abs().max() > 1e-4
    handle.save(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(vit(), tmp_path / "a").eval()
    torch.testing.assert_close(theirs(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("config", THEIRS.values(), ids=THEIRS)
def test_we_load_what_peft_saves_and_it_loads_that_again(config, vit, shaken, images, tmp_path):
    expected = write_theirs(config, vit, shaken, tmp_path / "a")(images)
    assert (expected - vit()(images)).abs().max() > 1e-4
    model = vit()
    handle = mmpeft.load(model, tmp_path / "a")
    assert handle.names == ["main"]
    torch.testing.assert_close(model(images), expected, atol=1e-6, rtol=0)
    handle.save(tmp_path / "b")
    again = peft.PeftModel.from_pretrained(vit(), tmp_path / "b").eval()
    torch.testing.assert_close(again(images), expected, atol=1e-6, rtol=0)


def test_a_slice_becomes_a_block(adapted, tmp_path):
    _, handle = adapted(LoRA(rank=4, alpha=10))
    handle.save(tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 20)
    from safetensors.torch import load_file

    b = load_file(tmp_path / "a/adapter_model.safetensors")["base_model.model.blocks.0.attn.qkv.lora_B.weight"]
    assert torch.equal(b[:32, :4], handle.state_dict()["blocks.0.attn.q.lora.lora_B"])
    assert torch.equal(b[64:, 4:], handle.state_dict()["blocks.0.attn.v.lora.lora_B"])
    assert not b[32:64].any()


def test_training_goes_on_in_peft_and_comes_back(vit, adapted, shaken, images, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    theirs = peft.PeftModel.from_pretrained(vit(), tmp_path / "a", is_trainable=True).eval()
    shaken([parameter for parameter in theirs.parameters() if parameter.requires_grad])
    theirs.save_pretrained(tmp_path / "a")
    with pytest.raises(ValueError, match=r"qkv\.lora_B\.weight has weights in rows that this adapter doesn't edit"):
        mmpeft.load(vit(), tmp_path / "a")
    model = vit()
    load_peft(model, tmp_path / "a", "back")
    torch.testing.assert_close(model(images), theirs(images), atol=1e-6, rtol=0)


def test_a_scale_changed_by_hand_is_told(vit, adapted, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    config = json.loads((tmp_path / "a/adapter_config.json").read_text())
    (tmp_path / "a/adapter_config.json").write_text(json.dumps(config | {"lora_alpha": 64}))
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv: the scale would be 4, and is 1"):
        mmpeft.load(vit(), tmp_path / "a")


CHANGES = {
    "bias": ("all", "bias"),
    "trainable_token_indices": ([1, 2], "trainable_token_indices"),
    "use_qalora": (True, "use_qalora"),
    "a_key_of_the_future": ({"x": 1}, "a_key_of_the_future: unknown key"),
    "init_lora_weights": ("pissa", "init_lora_weights"),
    "peft_type": ("LOHA", "peft_type 'LOHA' is not supported: only LORA, IA3"),
    "r": (8, r"lora_A\.weight: shape \(4, 32\), the model needs \(8, 32\)"),
    "target_modules": (["qkv", "proj"], r"blocks\.2\.attn\.proj: target_modules includes it, and it has no tensors"),
    "layers_to_transform": ([0, 1], r"blocks\.2\.attn\.qkv: it has tensors, and target_modules doesn't include it"),
    "modules_to_save": (["norm"], "modules_to_save includes it"),
}


@pytest.mark.parametrize("key", CHANGES)
def test_what_mmpeft_cannot_do_is_refused_by_name(key, vit, shaken, tmp_path):
    write_theirs(LoraConfig(r=4, target_modules=["qkv"]), vit, shaken, tmp_path / "a")
    value, message = CHANGES[key]
    path = tmp_path / "a/adapter_config.json"
    content = json.loads(path.read_text()) | {key: value}
    path.write_text(json.dumps(content | ({"layers_pattern": "blocks"} if key == "layers_to_transform" else {})))
    model = vit()
    with pytest.raises(ValueError, match=message):
        mmpeft.load(model, tmp_path / "a")
    assert "mmpeft" not in model._modules


def test_layers_without_a_site_are_all_named(vit, shaken, tmp_path):
    write_theirs(LoraConfig(target_modules="all-linear"), vit, shaken, tmp_path / "a")
    with pytest.raises(ValueError, match="head has tensors, and is no layer to adapt in this model"):
        mmpeft.load(vit(), tmp_path / "a")


@pytest.mark.parametrize(
    "methods",
    [
        mmpeft.AdaptFormer(),
        [LoRA(), mmpeft.BitFit()],
        [LoRA(), DoRA(targets=("mlp.up",))],
        [LoRA(alpha=1), LoRA(alpha=2, targets=("attn.k",))],
        [LoRA(dropout=0.1), LoRA(targets=("mlp.up",))],
        [DoRA(), DoRA(targets=("attn.qkv",))],
        [IA3(), IA3()],
    ],
    ids=["no such method", "half a module", "two kinds", "two scales", "two dropouts", "overlap", "twice"],
)
def test_what_peft_cannot_hold_stays_native(methods, adapted, vit, images, tmp_path):
    model, handle = adapted(methods)
    handle.save(tmp_path / "a")
    assert not (tmp_path / "a/adapter_config.json").exists()
    with pytest.raises(ValueError, match="no counterpart"):
        export(tmp_path / "a", tmp_path / "b", "peft")
    fresh = vit()
    mmpeft.load(fresh, tmp_path / "a")
    assert torch.equal(fresh(images), model.eval()(images))


def test_a_layer_that_timm_reads_past_is_not_given_to_peft(tmp_path):
    import timm

    model = timm.create_model("beit_base_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=4, num_classes=5)
    mmpeft.adapt(model, LoRA()).save(tmp_path / "a")
    assert json.loads((tmp_path / "a/mmpeft.json").read_text())["layout"] == "native"


def test_export_and_convert(vit, adapted, images, tmp_path):
    model, handle = adapted([LoRA(), LinearProbe()])
    handle.save(tmp_path / "a")
    export(tmp_path / "a", tmp_path / "theirs", "peft")
    assert {file.name for file in (tmp_path / "theirs").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    convert(tmp_path / "theirs", tmp_path / "ours", "peft")
    for loads in (lambda m: mmpeft.load(m, tmp_path / "ours"), lambda m: mmpeft.load(m, tmp_path / "theirs")):
        fresh = vit()
        loads(fresh)
        torch.testing.assert_close(fresh(images), model(images), atol=1e-6, rtol=0)
    with pytest.raises(ValueError, match=r"format: unknown 'pefd' \(did you mean 'peft'\?\)|one of: peft"):
        export(tmp_path / "a", tmp_path / "b", "pefd")


def test_peft_weights_in_a_pickle_are_refused(vit, shaken, tmp_path):
    write_theirs(LoraConfig(target_modules=["qkv"]), vit, shaken, tmp_path / "a")
    shutil.move(tmp_path / "a/adapter_model.safetensors", tmp_path / "a/adapter_model.bin")
    with pytest.raises(ValueError, match=r"adapter_model\.bin is a pickle.*save_pretrained"):
        mmpeft.load(vit(), tmp_path / "a")


def test_a_layer_under_another_name_gets_a_hint(adapted, vit, tmp_path):
    adapted(mmpeft.LoRA(rank=2))[1].save(tmp_path / "a")
    (tmp_path / "a/mmpeft.json").unlink()
    weights = tmp_path / "a/adapter_model.safetensors"
    tensors = {key.replace("model.blocks", "model.vision.blocks"): value for key, value in load_file(weights).items()}
    save_file(tensors, weights)
    with pytest.raises(ValueError, match=r"blocks\.0\.attn\.qkv has.*is it 'blocks\.0\.attn\.qkv' in this"):
        mmpeft.load(vit(), tmp_path / "a")
