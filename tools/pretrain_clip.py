"""Pretrain `tiny/clip`, the embedded CLIP model, from scratch on drawn pictures with captions (see caption_batches.py).

An open_clip CustomTextCLIP of 1.8 million parameters learns which caption belongs to which picture (symmetric InfoNCE,
Radford et al., 2021). A caption that happens to be true of another picture of the batch - "a circle" of every circle -
is left out of that picture's negatives. The vision tower starts as `tiny/vit`, made by pretrain_vit.py without words,
and learns slowly; the text tower starts from nothing. What is shipped is the average of the weights over the last steps
(EMA), in 16 bit, with the tokenizer's merges and a card.

    OMP_NUM_THREADS=1 python tools/pretrain_clip.py

It is checkpointed every 100 steps: called again with the same `--work`, it goes on where it was.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from byte_pairs import count_words, train_merges, write_merges
from caption_batches import Batch, Captioned, every_caption, name_figure
from open_clip.model import CustomTextCLIP
from open_clip.tokenizer import SimpleTokenizer
from safetensors.torch import load_file, save_file
from scenes import Bank, draw_bank
from torch import nn
from zero_shot import measure

CONTEXT = 24
MERGES = 1600
ARCHITECTURE: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 32, "patch_size": 8, "width": 128, "layers": 6, "head_width": 32, "no_ln_pre": True},
    "text_cfg": {"context_length": CONTEXT, "width": 96, "heads": 4, "layers": 3},
}
PREPROCESSING = {
    "size": [32, 32],
    "mode": "RGB",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "resize_mode": "squash",
    "fill_color": 0,
}
NAMES = {
    "patch_embed.proj": "conv1",
    "blocks.": "transformer.resblocks.",
    "norm1": "ln_1",
    "norm2": "ln_2",
    "attn.qkv.": "attn.in_proj_",
    "attn.proj": "attn.out_proj",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "norm.": "ln_post.",
}
"""timm's names of the parts of a vision transformer, and open_clip's."""
WEIGHTS = Path(__file__).resolve().parents[1] / "mmpeft" / "zoo" / "weights"


def loss_of(model: nn.Module, tokenizer: SimpleTokenizer, batch: Batch) -> torch.Tensor:
    """Symmetric InfoNCE over the pictures and captions of a batch, without false negatives."""
    unique = {caption: number for number, caption in enumerate(dict.fromkeys(batch.captions))}
    places = torch.tensor([unique[caption] for caption in batch.captions])
    image = F.normalize(model.encode_image(batch.pictures * 2 - 1), dim=1)
    text = F.normalize(model.encode_text(tokenizer([*unique])), dim=1)[places]
    logits = model.logit_scale.exp() * image @ text.T
    logits = logits.masked_fill(batch.also_true(), -math.inf)
    targets = torch.arange(len(image))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Warm up over 200 steps, then fall to nothing along a cosine."""
    return peak * min((step + 1) / 200, (1 + math.cos(math.pi * step / steps)) / 2)


def build_tokenizer(bank: Bank, path: Path) -> SimpleTokenizer:
    """Train the merges, unless they are there, and read them."""
    if not path.exists():
        names = [name_figure(str(name)) for name in bank.names if len(str(name)) == 1]
        write_merges(train_merges(count_words(every_caption(bank), names), MERGES), path)
    return SimpleTokenizer(bpe_path=str(path), context_length=CONTEXT)


def ship(model: nn.Module, architecture: dict[str, Any], facts: dict[str, Any], folder: Path) -> None:
    """Write the model as float16 safetensors, with a JSON file of architecture, tokenizer, preprocessing and facts."""
    state = {name: value.detach().half().contiguous() for name, value in model.state_dict().items()}
    save_file(state, folder / "tiny_clip.safetensors")
    tokenizer = {"merges": "tiny_clip_merges.txt.gz", "context_length": CONTEXT}
    card = {"library": "open_clip", "architecture": architecture, "tokenizer": tokenizer}
    card |= {"preprocessing": PREPROCESSING, "pretraining": facts}
    (folder / "tiny_clip.json").write_text(json.dumps(card, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--scenes", type=int, default=96, help="scenes in a batch")
    parser.add_argument("--letters", type=int, default=30, help="letters and characters in a batch, a fifth left out")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmpeft_pretrain_clip"), help="checkpoint and cache")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder of the weights to ship")
    return parser.parse_args()


def start_from_vit(visual: nn.Module, path: Path) -> None:
    """Copy tiny/vit, a timm model, into open_clip's: the same function, but for the projection, which is new.

    open_clip's patches have no bias: it is added to their positions.
    """
    state = {name: value.float() for name, value in load_file(path).items()}
    place = state.pop("pos_embed")[0]
    place[1:] += state.pop("patch_embed.proj.bias")
    renamed = {"positional_embedding": place, "class_embedding": state.pop("cls_token")[0, 0]}
    for name, value in state.items():
        for old, new in NAMES.items():
            name = name.replace(old, new)
        renamed[name] = value
    missing = visual.load_state_dict(renamed, strict=False)
    assert (missing.missing_keys, missing.unexpected_keys) == (["proj"], [])


def grouped(model: nn.Module, lr: float) -> list[dict[str, Any]]:
    """Only matrices decay; what comes from tiny/vit learns at a quarter of the rate."""
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        old = name.startswith("visual.") and name != "visual.proj"
        groups.setdefault((old, parameter.ndim > 1), []).append(parameter)
    return [
        {"params": part, "peak": lr / 4 if old else lr, "weight_decay": 0.05 if matrices else 0.0}
        for (old, matrices), part in groups.items()
    ]


def main() -> None:
    """Train, checkpoint, measure and ship."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    for folder in (options.work, options.output):
        folder.mkdir(parents=True, exist_ok=True)
    bank = draw_bank(options.work / "bank.npz")
    tokenizer = build_tokenizer(bank, options.output / "tiny_clip_merges.txt.gz")
    architecture = copy.deepcopy(ARCHITECTURE)
    architecture["text_cfg"]["vocab_size"] = tokenizer.vocab_size
    model = CustomTextCLIP(**architecture)
    start_from_vit(model.visual, WEIGHTS / "tiny_vit.safetensors")
    average = copy.deepcopy(model).requires_grad_(False).eval()
    data = Captioned(bank, options.seed, options.scenes, options.letters)
    optimizer = torch.optim.AdamW(grouped(model, options.lr), betas=(0.9, 0.98))
    first, seconds = resume(options.work / "checkpoint.pt", model, average, optimizer, data)
    start, running = time.perf_counter() - seconds, math.nan
    for step in range(first, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.steps, group["peak"])
        loss = loss_of(model, tokenizer, data.next())
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        with torch.no_grad():
            model.logit_scale.clamp_(0, math.log(100))
            for mean, value in zip(average.parameters(), model.parameters(), strict=True):
                mean.lerp_(value, 1 - min(0.995, (step + 1) / (step + 10)))
        running = loss.item() if math.isnan(running) else 0.98 * running + 0.02 * loss.item()
        if step % 50 == 0:
            elapsed = time.perf_counter() - start
            print(f"{step:6d} {elapsed:6.0f} s  loss {running:.3f}  scale {model.logit_scale.exp():.1f}", flush=True)
        if (step + 1) % 100 == 0 or step + 1 == options.steps:
            save(options.work / "checkpoint.pt", step + 1, time.perf_counter() - start, model, average, optimizer, data)
        if (step + 1) % 200 == 0:
            print(measure(average, tokenizer, per_style=400), flush=True)
    facts = {"steps": options.steps, "scenes": options.scenes, "letters": options.letters, "seed": options.seed}
    facts |= {
        "seconds": round(time.perf_counter() - start),
        "last_loss": round(running, 3),
        "data": "mmpeft/data/scenes.py",
    }
    average.half().float()
    ship(average, architecture, facts | {"zero_shot": measure(average, tokenizer)}, options.output)


def save(path: Path, step: int, seconds: float, *parts: Any) -> None:
    """Write a checkpoint, or none."""
    model, average, optimizer, data = parts
    state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
    state |= {"figures": data.figures.random.get_state(), "drawn": data.drawn}
    state |= {"random": data.random.bit_generator.state, "step": step, "seconds": seconds}
    torch.save(state, path.with_suffix(".tmp"))
    path.with_suffix(".tmp").rename(path)


def resume(path: Path, *parts: Any) -> tuple[int, float]:
    """Read the checkpoint, if there is one; return its step and the seconds spent so far."""
    model, average, optimizer, data = parts
    if not path.exists():
        return 0, 0.0
    state = torch.load(path, weights_only=True)
    for name, part in (("model", model), ("average", average), ("optimizer", optimizer)):
        part.load_state_dict(state[name])
    data.figures.random.set_state(state["figures"])
    data.drawn, data.random.bit_generator.state = state["drawn"], state["random"]
    return state["step"], state["seconds"]


if __name__ == "__main__":
    main()
