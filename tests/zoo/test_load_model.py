from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
import timm
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from timm.models.vision_transformer import VisionTransformer
from torch import nn

import mmpeft.optional
from mmpeft.zoo import load_model, load_tokenizer, models


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tim/vit_base_patch16_224", r"no library 'tim' \(did you mean 'timm'\?\)"),
        ("vit_base_patch16_224", r"no library 'vit_base_patch16_224' \(one of: diffusers, hf, open_clip, timm, tiny\)"),
        ("timm/", "nothing follows 'timm'"),
        ("timm/vit_bse_patch16_224", r"timm has no 'vit_bse_patch16_224' \(did you mean 'vit_base_patch16_224'"),
        ("timm/vit_base_patch16_224.augreg", r"has no tag 'augreg' \(did you mean 'augreg_in1k' or"),
        ("tiny/clop", r"'tiny/clop' is not embedded \(did you mean 'tiny/clip'"),
        ("tiny/vit@main", r"revision='main' can't be applied to model 'vit'"),
        ("./nowhere", r"model 'nowhere': expected NAME.safetensors with NAME.json beside it"),
    ],
)
def test_an_unknown_name_is_quoted_with_what_is_near(source, message):
    with pytest.raises(ValueError, match=message):
        load_model(source)


def test_timm_on_the_meta_device_is_there_at_once():
    start = time.perf_counter()
    model = load_model("timm/vit_giant_patch14_dinov2.lvd142m", device="meta")
    assert time.perf_counter() - start < 10
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert sum(parameter.numel() for parameter in model.parameters()) > 1e9


def test_timm_without_weights_takes_classes_and_size():
    model = load_model("timm/vit_tiny_patch16_224", pretrained=False, num_classes=3, image_size=64)
    assert isinstance(model, VisionTransformer)
    assert not model.training
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 3)
    assert timm.data.resolve_model_data_config(model)["input_size"] == (3, 64, 64)
    assert load_model("timm/resnet18", pretrained=False, image_size=64).pretrained_cfg["input_size"] == (3, 64, 64)


def test_timm_revision_reaches_the_hub(monkeypatch):
    asked = {}

    def create_model(name, **options):
        asked.update(options)
        return nn.Identity()

    monkeypatch.setattr(timm, "create_model", create_model)
    load_model("timm/vit_base_patch16_224.augreg_in21k@abc123")
    assert asked["pretrained"] is True
    assert asked["pretrained_cfg_overlay"]["hf_hub_id"] == "timm/vit_base_patch16_224.augreg_in21k@abc123"


def test_a_hub_that_does_not_answer_is_one_clear_error(monkeypatch):
    def create_model(name, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(timm, "create_model", create_model)
    with pytest.raises(ValueError, match=r"'timm/vit_base_patch16_224' could not be fetched: no route to host"):
        load_model("timm/vit_base_patch16_224")


def test_a_timm_folder_comes_back_with_its_preprocessing(tmp_path):
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, pretrained_cfg_overlay={"mean": (0.1, 0.2, 0.3)})
    timm.models.save_for_hf(model, tmp_path / "own", safe_serialization=True)
    path = str(tmp_path / "own")
    again = load_model(path)
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())
    assert timm.data.resolve_model_data_config(again)["mean"] == [0.1, 0.2, 0.3]
    other = load_model(path, num_classes=2)
    assert other.head.weight.shape == (2, 192)
    assert torch.equal(other.blocks[3].mlp.fc1.weight, model.blocks[3].mlp.fc1.weight)


def test_a_transformers_folder_has_the_class_of_its_config(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, image_size=32, num_labels=4
    )
    model = transformers.ViTForImageClassification(config)
    model.save_pretrained(tmp_path)
    again = load_model(str(tmp_path))
    assert type(again) is type(model)
    assert torch.equal(again.classifier.weight, model.classifier.weight)
    assert load_model(str(tmp_path), num_classes=7).classifier.weight.shape == (7, 16)
    assert next(load_model(str(tmp_path), device="meta").parameters()).device.type == "meta"


def test_a_text_model_takes_classes_and_one_without_a_classifier_says_so(tmp_path):
    transformers = pytest.importorskip("transformers")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    transformers.BertModel(transformers.BertConfig(**size, vocab_size=50)).save_pretrained(tmp_path / "bert")
    model = load_model(str(tmp_path / "bert"), num_classes=3)
    assert type(model) is transformers.BertForSequenceClassification
    assert model.classifier.weight.shape == (3, 16)
    transformers.CLIPTextConfig().save_pretrained(tmp_path / "text")
    with pytest.raises(ValueError, match="no classifier for clip_text_model, so no num_classes=3"):
        load_model(str(tmp_path / "text"), num_classes=3)


def test_code_from_the_hub_is_never_run(tmp_path):
    pytest.importorskip("transformers")
    marker = tmp_path / "ran"
    (tmp_path / "modeling_evil.py").write_text(f"open({str(marker)!r}, 'w')\nclass Evil: pass\n")
    (tmp_path / "config.json").write_text(
        '{"model_type": "vit", "architectures": ["Evil"], "auto_map": {"AutoModel": "modeling_evil.Evil"}}'
    )
    with pytest.raises(ValueError, match="class Evil is not part of transformers; remote code is never run"):
        load_model(str(tmp_path))
    assert not marker.exists()


def test_a_pickle_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    config.architectures = ["ViTModel"]
    config.save_pretrained(tmp_path)
    torch.save(transformers.ViTModel(config).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="could not be fetched"):
        load_model(str(tmp_path))


def test_a_missing_library_says_how_to_install_it(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(mmpeft.optional, "import_module", import_module)
    with pytest.raises(ImportError, match=r"open_clip is not installed: pip install 'mmpeft\[clip\]'"):
        load_model("open_clip/ViT-B-32/openai")
    with pytest.raises(ImportError, match=r"diffusers is not installed: pip install 'mmpeft\[diffusion\]'"):
        load_model("diffusers/someone/something")


def test_importing_the_zoo_needs_no_torch():
    program = "import sys, mmpeft.zoo; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_every_embedded_model_loads():
    assert models() == ["tiny/clip", "tiny/llm", "tiny/sd", "tiny/vit"]
    for name in models():
        assert isinstance(load_model(name), nn.Module | DiffusionPipeline)


def test_without_a_network_it_is_told_at_once(monkeypatch, tmp_path):
    """The hub's host has no address: libraries look into their caches alone, and try nothing again and again."""
    import socket

    from huggingface_hub import constants, hf_hub_download

    def no_address(*_):
        raise socket.gaierror("Name or service not known")

    def create_model(name, **options):
        assert constants.HF_HUB_OFFLINE
        hf_hub_download("timm/some", "model.safetensors", cache_dir=tmp_path)

    monkeypatch.setattr(socket, "getaddrinfo", no_address)
    monkeypatch.setattr("mmpeft.zoo.hub.getproxies", dict)
    monkeypatch.setattr(timm, "create_model", create_model)
    before = constants.HF_HUB_OFFLINE
    with pytest.raises(ValueError, match=r"'timm/vit_base_patch16_224' could not be fetched: there is no network"):
        load_model("timm/vit_base_patch16_224")
    assert before == constants.HF_HUB_OFFLINE


def test_a_timm_folder_takes_another_image_size(tmp_path):
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}
    model = timm.create_model("vit_tiny_patch16_224", num_classes=5, **size)
    timm.models.save_for_hf(model, tmp_path / "own", model_args=size, safe_serialization=True)
    path = str(tmp_path / "own")
    larger = load_model(path, image_size=64)
    assert larger.pos_embed.shape == (1, 65, 16)
    assert larger(torch.zeros(1, 3, 64, 64)).shape == (1, 5)
    assert timm.data.resolve_model_data_config(larger)["input_size"] == (3, 64, 64)
    state = model.state_dict()
    same = {name for name, value in larger.state_dict().items() if value.shape == state[name].shape}
    assert same == state.keys() - {"pos_embed"}
    assert all(torch.equal(larger.state_dict()[name], state[name]) for name in same)
    few = load_model(path, image_size=64, num_classes=2)
    assert few.head.weight.shape == (2, 16)
    assert torch.equal(few.blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight)


@pytest.mark.parametrize("wrapped", [lambda state: state, lambda state: {"epoch": 3, "model": state}])
def test_a_timm_checkpoint_by_its_path(tmp_path, wrapped):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=5)
    path = tmp_path / "own.pth"
    torch.save(wrapped(model.state_dict()), path)
    again = load_model(f"timm/test_vit/{path}", num_classes=5)
    body = [name for name in model.state_dict() if not name.startswith("head.")]
    assert all(torch.equal(again.state_dict()[name], model.state_dict()[name]) for name in body)
    with pytest.raises(ValueError, match=r"does not fit ResNet: no bn1\.bias"):
        load_model(f"timm/test_resnet/{path}")
    with pytest.raises(FileNotFoundError, match="no file"):
        load_model(f"timm/test_vit/{tmp_path}/gone.pth")
    with pytest.raises(ValueError, match="timm has no 'test_vti'"):
        load_model(f"timm/test_vti/{path}")


def test_an_open_clip_checkpoint_by_its_path(tmp_path, monkeypatch):
    open_clip = pytest.importorskip("open_clip")

    def small():
        size = {"layers": 1, "width": 32}
        vision = {"image_size": 32, "patch_size": 8, "head_width": 16, **size}
        return open_clip.CLIP(16, vision, {"context_length": 9, "vocab_size": 50, "heads": 2, **size})

    model = small()
    torch.save(
        {"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, tmp_path / "e.pt"
    )
    monkeypatch.setattr(open_clip, "create_model", lambda name, pretrained, **_: small())
    again = load_model(f"open_clip/ViT-B-32/{tmp_path}/e.pt")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


def test_an_open_clip_folder_of_the_hub(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    size = {"width": 16, "layers": 1}
    vision = {"image_size": 32, "patch_size": 16, "head_width": 8, **size}
    text = {"context_length": 9, "vocab_size": 49408, "heads": 2, **size}
    config = {"embed_dim": 16, "vision_cfg": vision, "text_cfg": text}
    written = {"model_cfg": config, "preprocess_cfg": {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.5, 0.5]}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(written))
    with pytest.raises(ValueError, match=r"no weights beside it: open_clip_model.safetensors or"):
        load_model(str(tmp_path))
    model = open_clip.CLIP(16, vision, text)
    save_file(model.state_dict(), tmp_path / "open_clip_model.safetensors")
    again = load_model(str(tmp_path))
    assert torch.equal(again.visual.conv1.weight, model.visual.conv1.weight)
    assert torch.equal(again.token_embedding.weight, model.token_embedding.weight)
    assert again.visual.preprocess_cfg["mean"] == [0.1, 0.2, 0.3]
    assert load_tokenizer(str(tmp_path))(["a photo"]).shape == (1, 9)
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": config | {"vision_cfg": {"widht": 3}}}))
    with pytest.raises(ValueError, match=r"open_clip_config.json describes no model of open_clip: .*widht"):
        load_model(str(tmp_path))
