"""Pretrain `tiny/vit`, the embedded vision transformer, from scratch on procedurally drawn pictures (see scenes.py).

The network (1.2 million parameters, 32 x 32 pixels in patches of 8) names all that was drawn at once: which of 700-odd
letters, invented characters and shapes; kind, polarity, texture and resolution; and, by regression, rotation, slant,
size, place, bend, colours and pen width. It starts with light figures on black and widens the variety from step to
step. What is shipped is the average of the weights over the last steps (EMA), in 16 bit, without these heads.

    OMP_NUM_THREADS=1 python tools/pretrain_vit.py

takes 0.28 s a step on an idle core (the shipped run shared two cores with others: 17 minutes) and ends at a
cross-entropy of about 3.9 over 780 figures. It is checkpointed every 200 steps: called again with the same `--work`, it
goes on where it was. Longer is not better here: see docs/embedded.md.
"""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from scenes import KINDS, RESOLUTIONS, TEXTURES, Scenes, draw_bank
from timm.models.vision_transformer import VisionTransformer
from torch import nn

ARCHITECTURE = {"img_size": 32, "patch_size": 8, "in_chans": 3, "embed_dim": 128, "depth": 6, "num_heads": 4}
PREPROCESSING = {
    "input_size": [3, 32, 32],
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "interpolation": "bilinear",
    "crop_pct": 1.0,
    "crop_mode": "center",
}
REGRESSED = {"geometry": 7, "colours": 7}
WEIGHTS = Path(__file__).resolve().parents[1] / "mmpeft" / "zoo" / "weights"


class Pretrainer(nn.Module):
    """The vision transformer and one linear layer that reads every attribute from its class token."""

    def __init__(self, figures: int) -> None:
        super().__init__()
        self.vit = VisionTransformer(**ARCHITECTURE, num_classes=0)
        labelled = {"figure": figures, "kind": len(KINDS), "dark": 2, "texture": len(TEXTURES)}
        self.sizes = {**labelled, "resolution": len(RESOLUTIONS), **REGRESSED}
        self.heads = nn.Linear(ARCHITECTURE["embed_dim"], sum(self.sizes.values()))

    def losses(self, pictures: torch.Tensor, attributes: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One loss per attribute: cross-entropy for labels, smooth L1 for values."""
        outputs = self.heads(self.vit(pictures * 2 - 1)).split(list(self.sizes.values()), 1)
        losses = {}
        for name, output in zip(self.sizes, outputs, strict=True):
            target = attributes[name]
            losses[name] = F.smooth_l1_loss(output, target) if name in REGRESSED else F.cross_entropy(output, target)
        return losses


def learning_rate(step: int, peak: float) -> float:
    """Warm up over 300 steps, then stay: the average of the weights does what a decay would do."""
    return peak * min(1.0, (step + 1) / 300)


def variety(step: int) -> float:
    """The curriculum: 0 for 150 steps, then widening, to reach 1 at step 1800."""
    return min(1.0, max(0.0, (step - 150) / 1650))


def ship(average: Pretrainer, facts: dict[str, object], folder: Path) -> None:
    """Write the backbone as float16 safetensors, with a JSON file of its architecture, preprocessing and facts."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in average.vit.state_dict().items()}
    save_file(state, folder / "tiny_vit.safetensors")
    card = {"library": "timm", "architecture": ARCHITECTURE, "preprocessing": PREPROCESSING, "pretraining": facts}
    (folder / "tiny_vit.json").write_text(json.dumps(card, indent=2) + "\n")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1400)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("/tmp/mmpeft_pretrain_vit"), help="checkpoint and cache")
    parser.add_argument("--output", type=Path, default=WEIGHTS, help="folder of the weights to ship")
    return parser.parse_args()


def main() -> None:
    """Train, checkpoint and ship."""
    options = parse_arguments()
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    options.work.mkdir(parents=True, exist_ok=True)
    scenes = Scenes(draw_bank(options.work / "bank.npz"), options.seed)
    model = Pretrainer(scenes.classes)
    average = copy.deepcopy(model).requires_grad_(False)
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=options.lr, betas=(0.9, 0.98))
    first, seconds, checkpoint = 0, 0.0, options.work / "checkpoint.pt"
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        scenes.random.set_state(state["random"])
        first, seconds = state["step"], state["seconds"]
    start = time.perf_counter() - seconds
    for step in range(first, options.steps):
        wide = variety(step)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, options.lr)
        losses = model.losses(*scenes.batch(options.batch, wide))
        loss = losses["figure"] + 0.2 * sum(value for name, value in losses.items() if name != "figure")
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        for mean, value in zip(average.parameters(), model.parameters(), strict=True):
            mean.lerp_(value.detach(), 1 - min(0.998, (step + 1) / (step + 10)))
        if step % 50 == 0:
            shown = " ".join(f"{name} {value.item():.3f}" for name, value in losses.items())
            print(f"{step:6d} {time.perf_counter() - start:6.0f} s  variety {wide:.2f}  {shown}", flush=True)
        if (step + 1) % 200 == 0 or step + 1 == options.steps:
            seconds = time.perf_counter() - start
            state = {"model": model.state_dict(), "average": average.state_dict(), "optimizer": optimizer.state_dict()}
            state |= {"random": scenes.random.get_state(), "step": step + 1, "seconds": seconds}
            torch.save(state, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").rename(checkpoint)
            facts = {"steps": step + 1, "batch": options.batch, "seed": options.seed, "seconds": round(seconds)}
            facts |= {"last_figure_loss": round(losses["figure"].item(), 3), "figures": scenes.classes}
            ship(average, facts | {"data": "tools/scenes.py"}, options.output)


if __name__ == "__main__":
    main()
