"""Pretrain `tiny/sd`, the embedded Stable Diffusion, from scratch on drawn scenes with captions.

First the autoencoder (see sd_autoencoder.py), then UNet and text encoder together on its latents (sd_denoiser.py). What
is shipped is the average of the weights over the last steps (EMA), in 16 bit, as a folder that diffusers loads, with a
card beside it. One shape of the scenes is neither drawn nor said (`HELD_OUT` in sd_data.py).

    OMP_NUM_THREADS=1 python tools/pretrain_sd.py

It is checkpointed every 200 steps: called again with the same `--work`, it goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
from sd_autoencoder import encode, train_autoencoder, whiten
from sd_data import HELD_OUT, LENGTH, Pictures, draw_pictures, draw_unseen, write_tokenizer
from sd_denoiser import SCHEDULER, Data, Denoiser, Recipe, train_denoiser
from sd_measure import measure, measure_held_out
from transformers import CLIPTokenizer

WEIGHTS = Path(__file__).resolve().parents[1] / "mmpeft" / "zoo" / "weights"


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=24_000)
    parser.add_argument("--autoencoder-steps", type=int, default=3000, help="of 16 pictures")
    parser.add_argument("--steps", type=int, default=8000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmpeft_pretrain_sd"), help="checkpoints and cache")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder of the weights to ship")
    return parser.parse_args()


def prepare(autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, pictures: Pictures) -> Data:
    """Encode every picture and every caption once."""
    mean, deviation = encode(autoencoder, pictures.pixels)
    options: dict[str, Any] = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    texts = [caption for captions in pictures.captions for caption in captions]
    tokens = tokenizer(texts, **options).input_ids.view(len(mean), -1, LENGTH)
    return Data(mean, deviation, tokens, tokenizer("", **options).input_ids[0])


def assemble(autoencoder: AutoencoderKL, tokenizer: CLIPTokenizer, denoiser: Denoiser) -> StableDiffusionPipeline:
    """Put the parts together as a Stable Diffusion pipeline."""
    return StableDiffusionPipeline(
        vae=autoencoder,
        text_encoder=denoiser.text,
        tokenizer=tokenizer,
        unet=denoiser.unet,
        scheduler=DDIMScheduler(**SCHEDULER),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def ship(pipeline: StableDiffusionPipeline, facts: dict[str, Any], folder: Path) -> None:
    """Write the pipeline in float16, as a folder of diffusers, and the card."""
    shutil.rmtree(folder / "tiny_sd", ignore_errors=True)
    pipeline.to(torch.float16).save_pretrained(folder / "tiny_sd", safe_serialization=True)
    write_tokenizer(WEIGHTS / "tiny_clip_merges.txt.gz", folder / "tiny_sd" / "tokenizer")
    text = folder / "tiny_sd" / "text_encoder" / "config.json"  # what transformers loads it as: like the other parts
    text.write_text(text.read_text().replace('"dtype": "float16"', '"dtype": "float32"'))
    card = {"library": "diffusers", "folder": "tiny_sd", "pretraining": facts}
    (folder / "tiny_sd.json").write_text(json.dumps(card, indent=2) + "\n")


def main() -> None:
    """Train, checkpoint, measure and ship."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    for folder in (options.work, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    tokenizer = write_tokenizer(WEIGHTS / "tiny_clip_merges.txt.gz", options.work / "tokenizer")
    pictures = draw_pictures(options.pictures, options.work / "pictures.npy")
    unseen = draw_unseen(options.pictures // 4, options.work / "unseen.npy")
    every = torch.cat([pictures.pixels[: options.pictures // 2], unseen])
    autoencoder, first = train_autoencoder(every, options.autoencoder_steps, 16, 4e-3, options.work)
    whiten(autoencoder, pictures.pixels[:2000])
    data = prepare(autoencoder, tokenizer, pictures)
    recipe = Recipe(options.steps, options.batch, options.lr, options.seed)
    denoiser, second = train_denoiser(tokenizer, data, recipe, options.work / "denoiser.pt")
    pipeline = assemble(autoencoder, tokenizer, denoiser.half().float())
    facts = {"autoencoder_steps": options.autoencoder_steps, "steps": recipe.steps, "batch": recipe.batch}
    facts |= {"seed": recipe.seed, "seconds": [round(first), round(second)], "pictures": options.pictures}
    facts |= {"data": "mmpeft/data/scenes.py", "held_out": HELD_OUT}
    facts |= {"accuracy": measure(pipeline) | {f"{HELD_OUT}, never seen": measure_held_out(pipeline)}}
    print(json.dumps(facts, indent=2), flush=True)
    ship(pipeline, facts, options.output)


if __name__ == "__main__":
    main()
