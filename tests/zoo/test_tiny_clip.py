from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from open_clip.model import CustomTextCLIP
from safetensors.torch import load_file
from torch import nn
from torch.nn.functional import normalize

import mmpeft
import mmpeft.optional
from mmpeft.data.config import DataConfig
from mmpeft.data.drawing import draw
from mmpeft.data.readers.scenes import scenes_of
from mmpeft.data.scenes import COLOURS, SHAPES, is_held_out
from mmpeft.data.transforms import make_transforms
from mmpeft.zoo import load_model, load_tokenizer, models
from mmpeft.zoo.cards import WEIGHTS

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


@pytest.fixture(scope="module")
def clip():
    return load_model("tiny/clip")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny/clip")


def test_it_is_a_plain_open_clip_model_of_two_towers(clip):
    assert "tiny/clip" in models()
    assert type(clip) is CustomTextCLIP
    assert not clip.training
    assert sum(parameter.numel() for parameter in clip.parameters()) < 2.5e6
    attention = {name for name, module in clip.named_modules() if isinstance(module, nn.MultiheadAttention)}
    assert {name.split(".")[0] for name in attention} == {"visual", "text"}
    assert [tower.name for tower in mmpeft.anatomy(clip).towers] == ["vision", "text"]


def test_its_weights_are_the_file_and_small(clip):
    state, stored = clip.state_dict(), load_file(WEIGHTS / "tiny_clip.safetensors")
    assert state.keys() == stored.keys()
    assert all(torch.equal(value, stored[name].float()) for name, value in state.items())
    assert sum(path.stat().st_size for path in WEIGHTS.glob("tiny_clip*")) < 5_000_000


def test_both_towers_give_features_of_one_width(clip, tokenizer):
    image, text, scale = clip(torch.zeros(2, 3, 32, 32), tokenizer(["a red star", "x"]))
    assert image.shape == text.shape == (2, clip.text.text_projection.shape[1])
    assert 1 < scale <= 100


def test_any_text_can_be_encoded_and_read_back(tokenizer):
    for text in (
        "a photo of a large purple hourglass.",
        "the digit seven",
        "twelve zebras & 3.5 % of a quiz",
        "naïve café 日本",
    ):
        assert tokenizer.decode(tokenizer.encode(text)).replace(" ", "") == text.replace(" ", "")
    ids = tokenizer(["a star", "word " * 50])
    assert ids.shape == (2, 24)
    assert (ids.argmax(1) == torch.tensor([3, 23])).all()
    assert ids.max() == tokenizer.vocab_size - 1 == tokenizer.eot_token_id


@pytest.mark.parametrize("words", [SHAPES, COLOURS, NUMBERS])
def test_names_of_classes_are_single_tokens(tokenizer, words):
    assert [len(tokenizer.encode(word)) for word in words] == [1] * len(words)


def zero_shot(clip, tokenizer, scenes, names, labels):
    _, transform = make_transforms(DataConfig(name="scenes"), clip)
    with torch.no_grad():
        text = normalize(clip.encode_text(tokenizer([f"a photo of a {name}." for name in names])), dim=1)
        images = clip.encode_image(torch.stack([transform(draw(scene)) for scene in scenes]))
    return ((images @ text.T).argmax(1) == torch.tensor(labels)).float().mean().item()


def test_combinations_never_seen_are_named(clip, tokenizer):
    scenes = [scene for scene in scenes_of("plain") if is_held_out(scene.shape, scene.colour)][::2]
    assert zero_shot(clip, tokenizer, scenes, SHAPES, [SHAPES.index(scene.shape) for scene in scenes]) > 0.7
    pairs = [(shape, colour) for shape in SHAPES for colour in COLOURS]
    labels = [pairs.index((scene.shape, scene.colour)) for scene in scenes]
    names = [f"{colour} {shape}" for shape, colour in pairs]
    assert zero_shot(clip, tokenizer, scenes, names, labels) > 0.65


def test_unseen_styles_leave_something_to_learn(clip, tokenizer):
    for style in ("sketch", "hatched", "neon", "stippled"):
        scenes = scenes_of(style)[::8]
        assert zero_shot(clip, tokenizer, scenes, SHAPES, [SHAPES.index(scene.shape) for scene in scenes]) < 0.7


def test_a_local_copy_loads_the_same_way(clip, tokenizer, tmp_path):
    for name in ("tiny_clip.json", "tiny_clip.safetensors", "tiny_clip_merges.txt.gz"):
        shutil.copy(WEIGHTS / name, tmp_path)
    source = str(tmp_path / "tiny_clip.safetensors")
    assert torch.equal(load_model(source).logit_scale, clip.logit_scale)
    assert torch.equal(load_tokenizer(source)(["a moon"]), tokenizer(["a moon"]))


def test_what_has_no_meaning_for_it_is_refused():
    with pytest.raises(ValueError, match="num_classes=3 can't be applied to model 'clip'"):
        load_model("tiny/clip", num_classes=3)
    with pytest.raises(ValueError, match="image_size=64 can't be applied to model 'clip'"):
        load_model("tiny/clip", image_size=64)


def test_without_open_clip_the_extra_is_named(monkeypatch):
    def import_module(name):
        raise ModuleNotFoundError(name, name=name)

    monkeypatch.setattr(mmpeft.optional, "import_module", import_module)
    for load in (load_model, load_tokenizer):
        with pytest.raises(ImportError, match=r"open_clip is not installed: pip install 'mmpeft\[clip\]'"):
            load("tiny/clip")


def test_on_the_meta_device_it_has_shapes_only():
    assert load_model("tiny/clip", device="meta").visual.conv1.weight.device.type == "meta"
    assert np.isfinite(load_model("tiny/clip", pretrained=False).logit_scale.item())
