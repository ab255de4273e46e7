from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import timm
import torch
import transformers
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torch import nn

from mmpeft.data import DataConfig
from mmpeft.data.preprocessing import preprocessing
from mmpeft.data.transforms import make_transforms


@pytest.fixture
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (61, 47, 3), dtype=np.uint8))


def clip_with(**config):
    size = {"layers": 1, "width": 32}
    model = open_clip.CustomTextCLIP(
        16, {"image_size": 32, "patch_size": 8, "head_width": 16, **size}, size | {"heads": 2}
    )
    values = {"size": 32, "mode": "RGB", "mean": (0.5, 0.4, 0.3), "std": (0.2, 0.3, 0.4), "fill_color": 0}
    open_clip.set_model_preprocess_cfg(model, values | config)
    return model


def prepared(model, image, **options):
    return make_transforms(DataConfig(name="digits", **options), model)[0](image)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_open_clip_images_are_prepared_as_open_clip_does(image, mode, interpolation):
    model = clip_with(resize_mode=mode, interpolation=interpolation)
    theirs = image_transform_v2(PreprocessCfg(**model.visual.preprocess_cfg), is_train=False)
    assert torch.equal(prepared(model, image), theirs(image))


def test_augmentation_works_with_it(image):
    model = clip_with(resize_mode="squash", interpolation="bicubic")
    torch.manual_seed(0)
    assert prepared(model, image, augment=["crop", "flip"]).shape == (3, 32, 32)


def test_a_resize_mode_that_timm_has_not_is_refused():
    with pytest.raises(ValueError, match="resize_mode 'longest' is not supported"):
        preprocessing(clip_with(resize_mode="longest", interpolation="bicubic"))


def _saved(name, path, processor):
    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64}
    vision = {"image_size": 32, "patch_size": 8, **size}
    config = getattr(transformers, f"{name}Config")(text_config={"vocab_size": 50, **size}, vision_config=vision)
    kind = getattr(transformers, f"{name}Model")
    kind(config).save_pretrained(path)
    if processor is not None:
        processor.save_pretrained(path)
    return kind.from_pretrained(path)


def test_transformers_images_are_prepared_as_their_image_processor_does(image, tmp_path):
    siglip = transformers.SiglipImageProcessor(size={"height": 32, "width": 32})
    model = _saved("Siglip", tmp_path / "siglip", siglip)
    theirs = siglip(images=image, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(prepared(model, image), theirs, atol=0.02)  # the same up to a grey level
    clip = transformers.CLIPImageProcessor(size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32})
    model, even = _saved("CLIP", tmp_path / "clip", clip), image.resize((80, 120))
    theirs = clip(images=even, return_tensors="pt")["pixel_values"][0]
    assert torch.allclose(prepared(model, even), theirs, atol=0.04)


def test_transformers_without_an_image_processor_ask_for_a_transform(tmp_path):
    model = _saved("CLIP", tmp_path, None)
    with pytest.raises(ValueError, match=r"CLIPModel of .* no image processor could be read"):
        preprocessing(model)


def test_a_module_that_holds_a_model_is_asked_there():
    holder = nn.Module()
    holder.backbone = clip_with(resize_mode="squash", interpolation="bicubic")
    assert preprocessing(holder) == preprocessing(holder.backbone)
    vit = timm.create_model("vit_tiny_patch16_224")
    holder.backbone = vit
    assert preprocessing(holder) == preprocessing(vit)


def test_what_says_nothing_is_refused():
    with pytest.raises(ValueError, match="Linear has neither a pretrained_cfg nor visual"):
        preprocessing(nn.Linear(2, 2))
    holder = nn.Module()
    holder.backbone = SimpleNamespace()
    with pytest.raises(ValueError, match="Module has neither"):
        preprocessing(holder)
