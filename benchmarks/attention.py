"""A training step on every attention backend that this machine has, beside the library's own way, for each modality.

python benchmarks/attention.py            about 4 minutes on idle cores; --write adds the table to benchmarks/RESULTS.md
python benchmarks/attention.py --quick    small models and few rounds, half a minute

On a GPU the models are bigger and run in bfloat16, and time is the wall's between two synchronisations.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, get_args

import torch
from measure import Arm, Row, Timing, counted, interleave, publish, timed
from torch import Tensor, nn

import mmpeft
from mmpeft.handle.report import saved_bytes
from mmpeft.kernels.backends import Backend

GPU = torch.cuda.is_available()
DEVICE, DTYPE = ("cuda", torch.bfloat16) if GPU else ("cpu", torch.float32)


@dataclass(frozen=True)
class Size:
    """How much to measure: the tokens decide what a kernel is worth."""

    rounds: int
    depth: int
    width: int
    image: int
    words: int
    batch: int


SIZES = {
    "quick": Size(2, 2, 64, 64, 64, 1),
    "cpu": Size(5, 3, 384, 224, 512, 2),
    "gpu": Size(20, 12, 768, 512, 2048, 8),
}


def vision(size: Size) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A ViT with patches of 8 pixels."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": size.image, "patch_size": 8, "embed_dim": size.width, "depth": size.depth}
    images = made(size.batch, 3, size.image, size.image)
    return VisionTransformer(**sizes, num_heads=size.width // 64), lambda model: model(images).sum()


def clip(size: Size) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """Both towers of an open_clip model."""
    from open_clip.model import CustomTextCLIP

    layers = {"layers": size.depth, "width": size.width}
    text = {"context_length": 77, "vocab_size": 500, "heads": size.width // 64, **layers}
    model = CustomTextCLIP(size.width, {"image_size": size.image, "patch_size": 16, "head_width": 64, **layers}, text)
    images, words = made(size.batch, 3, size.image, size.image), torch.arange(77, device=DEVICE).expand(size.batch, -1)
    return model, lambda model: sum(part.sum() for part in model(images, words)[:2])  # type: ignore[return-value]


def language(size: Size) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A Llama; four heads share one of keys, where their number can be divided by four."""
    from transformers import LlamaConfig, LlamaModel

    heads = size.width // 64
    sizes = {"hidden_size": size.width, "intermediate_size": 2 * size.width, "num_hidden_layers": size.depth}
    shared = max(1, heads // 4) if heads % 4 == 0 else heads
    config = LlamaConfig(vocab_size=500, num_attention_heads=heads, num_key_value_heads=shared, **sizes)
    ids = torch.arange(size.words, device=DEVICE).expand(size.batch, -1) % 500
    return LlamaModel(config), lambda model: model(ids, use_cache=False).last_hidden_state.sum()


def diffusion(size: Size) -> tuple[nn.Module, Callable[[Any], Tensor]]:
    """A UNet of Stable Diffusion with three of its four levels."""
    from diffusers import UNet2DConditionModel

    down = ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")
    up = ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")
    channels, side = (size.width // 2, size.width, size.width), size.image // 8
    model = UNet2DConditionModel(
        side, block_out_channels=channels, layers_per_block=1, cross_attention_dim=size.width, attention_head_dim=8,
        down_block_types=down, up_block_types=up,
    )  # fmt: skip
    latents, text = made(size.batch, 4, side, side), made(size.batch, 77, size.width)
    return model, lambda model: model(latents, torch.tensor(3, device=DEVICE), text).sample.sum()


MODALITIES = {"ViT": vision, "CLIP": clip, "Llama": language, "SD UNet": diffusion}


def made(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, DTYPE)


def available(model: nn.Module, step: Callable[[Any], Tensor]) -> dict[str, str]:
    """Return each backend with the reason why it can't run this model here, "" where it can."""
    found = {}
    for backend in get_args(Backend):
        try:
            with mmpeft.use_attention(model, backend):
                step(model).backward()
            found[backend] = ""
        except (ValueError, ImportError) as error:
            found[backend] = str(error)
    return found


def measure(model: nn.Module, step: Callable[[Any], Tensor], backends: list[Backend], rounds: int) -> dict[str, Timing]:
    """Time forward and backward by backend, in turn."""

    def chosen(backend: Backend) -> Arm:
        return Arm(lambda _: step(model).backward(), lambda: mmpeft.use_attention(model, backend))

    if not GPU:
        return interleave(rounds, **{backend: chosen(backend) for backend in backends})
    seconds: dict[str, list[float]] = {backend: [] for backend in backends}
    for number in range(rounds + 2):
        for backend in backends:
            mmpeft.use_attention(model, backend)
            torch.cuda.synchronize()
            start = time.perf_counter()
            step(model).backward()
            torch.cuda.synchronize()
            if number > 1:
                seconds[backend].append(time.perf_counter() - start)
    return {backend: Timing(tuple(own)) for backend, own in seconds.items()}


def memory(model: nn.Module, step: Callable[[Any], Tensor], backend: Backend) -> int:
    """Return the peak of a step on a GPU; on a CPU the bytes that a forward pass keeps for the backward pass."""
    mmpeft.use_attention(model, backend)
    gc.collect()
    if not GPU:
        return saved_bytes(Step(model, step), torch.zeros(1))
    torch.cuda.reset_peak_memory_stats()
    step(model).backward()
    return torch.cuda.max_memory_allocated()


class Step(nn.Module):
    """A step as a module, whose weights do not count among the bytes kept."""

    def __init__(self, model: nn.Module, step: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.model, self.step = model, step

    def forward(self, _: Tensor) -> Tensor:
        return self.step(self.model)


def rows(name: str, size: Size) -> list[Row]:
    """Measure one modality: LoRA on a frozen model, as it is trained."""
    torch.manual_seed(0)
    model, step = MODALITIES[name](size)
    model.to(DEVICE, DTYPE).train()
    mmpeft.adapt(model, mmpeft.LoRA(rank=8))
    reasons = available(model, step)
    backends = [backend for backend in get_args(Backend) if not reasons[backend]]
    times = measure(model, step, backends, size.rounds)
    kept = {backend: memory(model, step, backend) for backend in backends}
    what = "peak of a step" if GPU else "bytes kept for backward"
    found = []
    for backend in backends[1:]:
        found.append(timed(f"{name}, {backend}: step", {"ours": times[backend], "auto": times["auto"]}, "auto"))
        found.append(counted(f"{name}, {backend}: {what}", kept[backend], kept["auto"]))
    lacking = {backend: reason.removeprefix("attention: ") for backend, reason in reasons.items() if reason}
    return [*found, *(Row(f"{name}, {backend}", reason) for backend, reason in lacking.items())]


def main() -> None:
    """Measure every modality and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small models and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = SIZES["quick" if options.quick else "gpu" if GPU else "cpu"]
    found = [row for name in MODALITIES for row in rows(name, size)]
    packages = ("torch", "timm", "open_clip_torch", "transformers", "diffusers")
    publish("attention", found, packages, options.write, ("backend", "auto"))


if __name__ == "__main__":
    main()
