"""mmpeft beside HF peft in one process: the same ViT, the same LoRA, equal outputs; and the step beside its floor.

python benchmarks/injection.py            about 10 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/injection.py --quick    a small model and few rounds, about a minute
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import timm
import torch
from measure import Arm, Row, Timing, counted, interleave, mib, publish, timed
from torch import Tensor, nn

import mmpeft
from mmpeft.handle.report import saved_bytes

TARGETS = ("attn.qkv", "attn.out", "mlp.up", "mlp.down")
PATTERN = r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(fc1|fc2))"
OURS = mmpeft.LoRA(rank=8, targets=TARGETS)
THEIRS = {"r": 8, "lora_alpha": 8, "lora_dropout": 0.0}


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    batch: int = 8
    depth: int = 12
    rounds: int = 7
    adapters: int = 64

    def vit(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """Return the frozen model, the same at each call."""
        torch.manual_seed(0)
        model = timm.create_model("vit_small_patch16_224", pretrained=False, depth=self.depth)
        return model.to(dtype).requires_grad_(False)

    def images(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """Return the batch."""
        return torch.randn(self.batch, 3, 224, 224, generator=torch.Generator().manual_seed(0)).to(dtype)


def ours(model: nn.Module, method: mmpeft.Method = OURS, name: str = "main") -> nn.Module:
    """Adapt a model with mmpeft."""
    mmpeft.adapt(model, method, name=name)
    return model


def theirs(model: nn.Module, pattern: str = PATTERN) -> Any:
    """Adapt a model with peft."""
    return peft.get_peft_model(model, peft.LoraConfig(target_modules=pattern, **THEIRS))


def pair(size: Size, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, Any]:
    """Return the model adapted by both, with equal weights; their outputs are checked to be equal."""
    a, b = ours(size.vit(dtype)), theirs(size.vit(dtype))
    with torch.no_grad():
        for key, value in mmpeft.adapters(a).state_dict().items():
            site, _, factor = key.rpartition(".")
            path = f"base_model.model.{site.removesuffix('.lora')}.{factor}.default.weight"
            b.get_parameter(path).copy_(value.normal_(std=0.02))
        expected, output = a(size.images(dtype)), b(size.images(dtype))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(expected, output, rtol=tolerance, atol=tolerance)
    return a, b


def injection(size: Size) -> list[Row]:
    """Time to inject, on the CPU and for a giant model on the meta device."""
    times = interleave(size.rounds, ours=Arm(ours, size.vit), peft=Arm(theirs, size.vit))
    with torch.device("meta"):
        giant = timm.create_model("vit_giant_patch14_224", pretrained=False)
    config = peft.LoraConfig(target_modules=PATTERN, **THEIRS)

    def inject(model: nn.Module) -> object:
        return peft.inject_adapter_in_model(config, model, low_cpu_mem_usage=True)

    arms = {"ours": Arm(ours, lambda: copy.deepcopy(giant)), "peft": Arm(inject, lambda: copy.deepcopy(giant))}
    meta = interleave(size.rounds, **arms)
    return [
        timed(f"inject LoRA, ViT-S, {4 * size.depth} sites", times),
        timed("inject LoRA, ViT-giant on the meta device, 160 sites", meta),
    ]


def steps(size: Size) -> list[Row]:
    """Forward and backward beside peft and beside the floor; bytes kept in between; forward alone."""
    a, b = pair(size)
    x, frozen, sliced = size.images(), size.vit(), ours(size.vit(), mmpeft.LoRA(rank=8))

    def floor(_: None) -> None:
        frozen(x).sum().backward()

    def step(model: nn.Module) -> Arm:
        return Arm(lambda _: model(x).sum().backward())

    hook = frozen.patch_embed.register_forward_hook(lambda module, args, y: y.requires_grad_())
    kept = saved_bytes(frozen, x)
    times = interleave(size.rounds, floor=Arm(floor), ours=step(a), peft=step(b), sliced=step(sliced))
    hook.remove()
    rows = [
        timed("training step (forward + backward)", times),
        Row("the same over its floor (frozen forward + input gradient)", *_over(times, "floor")),
        Row("training step, LoRA on q and v only, over the floor", f"{times['sliced'].over(times['floor']):.3f}"),
        counted("bytes kept for backward", saved_bytes(a, x), saved_bytes(b, x)),
        Row("the same, LoRA on q and v only", mib(saved_bytes(sliced, x))),
        Row("the same, frozen backbone with gradient to its input", mib(kept)),
    ]
    with torch.no_grad():
        forward = {"frozen": frozen, "ours": a, "peft": b}
        times = interleave(size.rounds, **{name: Arm(lambda _, m=m: m(x)) for name, m in forward.items()})
    return [*rows, timed("forward, no gradient", times), Row("the same over the frozen model", *_over(times, "frozen"))]


def _over(times: dict[str, Timing], base: str) -> tuple[str, str, float]:
    own, peer = (times[name].over(times[base]) for name in ("ours", "peft"))
    return f"{own:.3f}", f"{peer:.3f}", own / peer


def half(size: Size) -> list[Row]:
    """Bytes kept with a bf16 base and each library's own choice of the adapter's precision (fp32 in both)."""
    a, b = pair(size, torch.bfloat16)
    x = size.images(torch.bfloat16)
    return [counted("bytes kept, bf16 base, default adapter precision", saved_bytes(a, x), saved_bytes(b, x))]


def files(size: Size) -> list[Row]:
    """Save an adapter, and load it into a fresh model."""
    a, b = pair(size)
    with tempfile.TemporaryDirectory() as directory:
        here = {name: Path(directory) / name for name in ("ours", "peft")}
        handle = mmpeft.adapters(a)
        saving = {
            "ours": Arm(lambda _: handle.save(here["ours"])),
            "peft": Arm(lambda _: b.save_pretrained(here["peft"])),
        }
        loading = {
            "ours": Arm(lambda model: mmpeft.load(model, here["ours"]), size.vit),
            "peft": Arm(lambda model: peft.PeftModel.from_pretrained(model, here["peft"]), size.vit),
        }
        saved, loaded = interleave(size.rounds, **saving), interleave(size.rounds, **loading)
    return [timed("save", saved), timed("load into a fresh model", loaded)]


class Blocks(nn.Module):
    """16 blocks of seven linear layers: 112 sites."""

    def __init__(self) -> None:
        super().__init__()
        names = ("q", "k", "v", "o", "gate", "up", "down")
        self.blocks = nn.ModuleList(nn.ModuleDict({n: nn.Linear(64, 64) for n in names}) for _ in range(16))


def many(size: Size) -> list[Row]:
    """Add adapters one after another, then switch between them."""
    a, b = Blocks(), Blocks()
    everywhere, config = (
        mmpeft.LoRA(rank=8, targets="all"),
        peft.LoraConfig(target_modules=r"blocks\.\d+\.\w+", **THEIRS),
    )
    names = [f"a{k}" for k in range(1, size.adapters + 1)]
    spent: dict[str, list[float]] = {"ours": [], "peft": []}
    wrapped: Any = None
    for name in names:
        start = time.process_time()
        ours(a, everywhere, name)
        spent["ours"].append(time.process_time() - start)
        start = time.process_time()
        if wrapped is None:
            wrapped = peft.get_peft_model(b, config, adapter_name=name)
        else:
            wrapped.add_adapter(name, config)
        spent["peft"].append(time.process_time() - start)
    return [*_added(spent), _switched(size, mmpeft.adapters(a), wrapped, names)]


def _added(spent: dict[str, list[float]]) -> list[Row]:
    count, rows = len(spent["ours"]), []
    for first, last in ((1, 1), (count // 4 - 1, count // 4 + 1), (count - 2, count)):
        own, peer = (statistics.median(spent[name][first - 1 : last]) for name in ("ours", "peft"))
        what = f"add adapter {first}" if first == last else f"add one more adapter, median of numbers {first} to {last}"
        rows.append(Row(f"{what} (112 sites)", f"{1e3 * own:.0f} ms", f"{1e3 * peer:.0f} ms", own / peer))
    own, peer = sum(spent["ours"]), sum(spent["peft"])
    return [*rows, Row(f"add {count} adapters, sum", f"{own:.2f} s", f"{peer:.2f} s", own / peer)]


def _switched(size: Size, handle: Any, wrapped: Any, names: list[str]) -> Row:
    def turn(switch: Any) -> Arm:
        return Arm(lambda _: (switch(names[0]), switch(names[-1])))

    times = interleave(size.rounds, ours=turn(handle.activate), peft=turn(wrapped.set_adapter))
    return timed(f"switch twice among {len(names)} adapters (112 sites)", times)


def main() -> None:
    """Measure everything and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a small model and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(batch=2, depth=2, rounds=3, adapters=8) if options.quick else Size()
    rows = [row for part in (injection, steps, half, files, many) for row in part(size)]
    publish("injection", rows, ("torch", "timm", "peft"), options.write)


if __name__ == "__main__":
    main()
