from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file
from transformers import CLIPTextModel, CLIPTokenizer

from mmpeft.data.drawing import draw
from mmpeft.data.recognition import recognise
from mmpeft.data.scenes import COLOURS, SHAPES, imagine
from mmpeft.zoo import load_model, load_tokenizer, models
from mmpeft.zoo.cards import WEIGHTS

FOLDER = WEIGHTS / "tiny_sd"
HELD_OUT = "heart"
ASKED = [(shape, COLOURS[number % 8]) for number, shape in enumerate(shape for shape in SHAPES if shape != HELD_OUT)]
PARTS = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "text_encoder": CLIPTextModel}


@pytest.fixture(scope="module")
def pipeline():
    pipeline = load_model("tiny/sd")
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(pipeline, prompts, seed=0, steps=20):
    random = torch.Generator().manual_seed(seed)
    return pipeline(prompts, num_inference_steps=steps, guidance_scale=4.0, generator=random).images


def test_it_is_a_plain_stable_diffusion_pipeline(pipeline):
    assert "tiny/sd" in models()
    assert type(pipeline) is StableDiffusionPipeline
    for name, kind in PARTS.items():
        part = getattr(pipeline, name)
        assert type(part) is kind
        assert not part.training
        assert {parameter.dtype for parameter in part.parameters()} == {torch.float32}
    kinds = {name.split(".")[-2] for name in pipeline.unet.attn_processors}
    assert kinds == {"attn1", "attn2"}
    assert pipeline.unet.config.cross_attention_dim == pipeline.text_encoder.config.hidden_size
    assert pipeline.scheduler.config.prediction_type == "epsilon"


@pytest.mark.parametrize("name", PARTS)
def test_its_weights_are_the_files(pipeline, name):
    (path,) = (FOLDER / name).glob("*.safetensors")
    stored, state = load_file(path), getattr(pipeline, name).state_dict()
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert all(torch.equal(value.float(), state[key]) for key, value in stored.items())
    assert all(torch.isfinite(value).all() for value in stored.values())


def test_it_is_small():
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 8_000_000


def test_diffusers_loads_the_folder(pipeline):
    again = StableDiffusionPipeline.from_pretrained(FOLDER)
    again.set_progress_bar_config(disable=True)
    one, two = (np.asarray(generate(part, ["a red star"], steps=2)[0]) for part in (pipeline, again))
    assert (one == two).all()


def test_its_tokenizer_knows_the_words_and_takes_any_text(pipeline):
    tokenizer = pipeline.tokenizer
    assert isinstance(tokenizer, CLIPTokenizer)
    assert tokenizer.model_max_length == pipeline.text_encoder.config.max_position_embeddings == 24
    for word in (*SHAPES, *COLOURS):
        assert len(tokenizer(word).input_ids) == 3
    ids = load_tokenizer("tiny/clip")(["a purple hourglass, naïve 7"])[0]
    assert tokenizer("a purple hourglass, naïve 7").input_ids == ids[ids != 0].tolist()


def test_the_same_seed_gives_the_same_picture(pipeline):
    one, two, other = (np.asarray(generate(pipeline, ["a blue ring"], seed, 4)[0]) for seed in (1, 1, 2))
    assert one.shape == (32, 32, 3)
    assert (one == two).all()
    assert (one != other).any()


def test_the_autoencoder_keeps_figures(pipeline):
    pictures = [draw(imagine((8, number), shape=shape, style="plain")) for number, shape in enumerate(SHAPES)]
    pixels = torch.from_numpy(np.stack([np.asarray(picture) for picture in pictures])).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        latents = pipeline.vae.encode(pixels).latent_dist.mean
        again = pipeline.vae.decode(latents).sample
    assert latents.shape == (len(SHAPES), 4, 16, 16)
    assert latents.std().item() == pytest.approx(1 / pipeline.vae.config.scaling_factor, rel=0.3)
    assert (again - pixels).abs().mean().item() < 0.08


def test_it_draws_the_shape_and_colour_that_are_asked_for(pipeline):
    seen = [recognise(picture) for picture in generate(pipeline, [f"a {colour} {shape}" for shape, colour in ASKED])]
    assert sum(one is not None and one.shape == shape for one, (shape, _) in zip(seen, ASKED, strict=True)) >= 9
    assert sum(one is not None and one.colour == colour for one, (_, colour) in zip(seen, ASKED, strict=True)) >= 10


def test_the_held_out_shape_is_not_drawn_from_its_name(pipeline):
    assert json.loads((WEIGHTS / "tiny_sd.json").read_text())["pretraining"]["held_out"] == HELD_OUT
    seen = [recognise(picture) for picture in generate(pipeline, [f"a {colour} {HELD_OUT}" for colour in COLOURS])]
    assert sum(one is not None and one.shape == HELD_OUT for one in seen) <= 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "meta"}, "model 'tiny/sd': a pipeline has no form without weights"),
        ({"pretrained": False}, "model 'tiny/sd': a pipeline has no form without weights"),
        ({"num_classes": 3}, "num_classes=3 can't be applied to model 'sd'"),
        ({"image_size": 64}, "image_size=64 can't be applied to model 'sd'"),
    ],
)
def test_what_has_no_meaning_for_it_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        load_model("tiny/sd", **options)


def test_its_tokenizer_is_the_pipelines_own():
    with pytest.raises(ValueError, match=r"'tiny_sd' is a pipeline, which holds its own: load_model\(...\).tokenizer"):
        load_tokenizer("tiny/sd")
