"""Random diffusion pipelines small enough for tests, and pictures to train them on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

CLIP: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_position_embeddings": 77, "vocab_size": 140, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1,
    "projection_dim": 16,
}  # fmt: skip


def tokenizer() -> Any:
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(33, 127) if not chr(code).isupper()]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = {word: index for index, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)


def text_encoder(projected: bool = False) -> Any:
    import transformers

    kind = "CLIPTextModelWithProjection" if projected else "CLIPTextModel"
    return getattr(transformers, kind)(transformers.CLIPTextConfig(**CLIP))


def autoencoder(channels: int = 4, **options: Any) -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels, norm_num_groups=4, **options,
    )  # fmt: skip


def unet(**options: Any) -> Any:
    from diffusers import UNet2DConditionModel

    own: dict[str, Any] = {
        "sample_size": 8, "block_out_channels": (16, 32), "layers_per_block": 1, "cross_attention_dim": 24,
        "attention_head_dim": 8, "norm_num_groups": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    }  # fmt: skip
    return UNet2DConditionModel(**own | options)


def stable_diffusion(prediction: str = "epsilon", seed: int = 0) -> Any:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(seed)
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction,
        clip_sample=False, steps_offset=1,
    )  # fmt: skip
    parts = {"vae": autoencoder(), "unet": unet(), "text_encoder": text_encoder(), "tokenizer": tokenizer()}
    none = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    return StableDiffusionPipeline(scheduler=scheduler, **parts, **none)


def stable_diffusion_xl() -> Any:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    torch.manual_seed(0)
    model = unet(
        cross_attention_dim=48, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=16 + 6 * 4, transformer_layers_per_block=(1, 1),
        use_linear_projection=True, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    texts = {"text_encoder": text_encoder(), "text_encoder_2": text_encoder(projected=True)}
    scheduler = EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    return StableDiffusionXLPipeline(
        vae=autoencoder(), unet=model, scheduler=scheduler, tokenizer=tokenizer(), tokenizer_2=tokenizer(), **texts
    )


def stable_diffusion_3() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel, StableDiffusion3Pipeline

    torch.manual_seed(0)
    model = SD3Transformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=64, caption_projection_dim=16, pooled_projection_dim=32, out_channels=4,
        pos_embed_max_size=8,
    )  # fmt: skip
    texts = {"text_encoder": text_encoder(projected=True), "text_encoder_2": text_encoder(projected=True)}
    texts["text_encoder_3"] = t5(64)
    tokens = {name: tokenizer() for name in ("tokenizer", "tokenizer_2", "tokenizer_3")}
    return StableDiffusion3Pipeline(
        transformer=model, vae=autoencoder(shift_factor=0.1), scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **texts, **tokens,
    )  # fmt: skip


def t5(width: int) -> Any:
    from transformers import T5Config, T5EncoderModel

    return T5EncoderModel(T5Config(vocab_size=150, d_model=width, d_kv=12, num_heads=2, d_ff=32, num_layers=1))


def flux() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline, FluxTransformer2DModel

    torch.manual_seed(0)
    model = FluxTransformer2DModel(
        in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=8, num_attention_heads=2,
        joint_attention_dim=24, pooled_projection_dim=24, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True), vae=autoencoder(shift_factor=0.1),
        text_encoder=text_encoder(), tokenizer=tokenizer(), text_encoder_2=t5(24), tokenizer_2=tokenizer(),
        transformer=model,
    )  # fmt: skip


def pixart() -> Any:
    from diffusers import DPMSolverMultistepScheduler, PixArtAlphaPipeline, PixArtTransformer2DModel

    torch.manual_seed(0)
    model = PixArtTransformer2DModel(
        sample_size=8, patch_size=2, in_channels=4, out_channels=8, num_layers=2, attention_head_dim=8,
        num_attention_heads=2, cross_attention_dim=16, caption_channels=24, norm_num_groups=4,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(beta_start=0.0001, beta_end=0.02)
    return PixArtAlphaPipeline(
        vae=autoencoder(), transformer=model, scheduler=scheduler, text_encoder=t5(24), tokenizer=tokenizer()
    )


PIPELINES = {
    "sd": stable_diffusion,
    "sdxl": stable_diffusion_xl,
    "sd3": stable_diffusion_3,
    "flux": flux,
    "pixart": pixart,
}


def pictures(folder: Path, count: int = 12, size: tuple[int, int] = (16, 16), captions: bool = True) -> Path:
    """Write noisy squares, each with its caption in a text file beside it."""
    random = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        image = random.integers(0, 80, (*size, 3))
        image[4:10, 4:10, number % 3] = 220
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number:02d}.png")
        if captions:
            (folder / f"{number:02d}.txt").write_text(f"a cat, {('red', 'green', 'blue')[number % 3]}\n")
    return folder
