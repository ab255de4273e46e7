"""One batch for many adapters: mmpeft's route beside HF peft's mixed batch, in one process with equal outputs.

python benchmarks/routing.py            about 10 minutes; --write adds the table to benchmarks/RESULTS.md
python benchmarks/routing.py --quick    few adapters and few rounds, a minute and a half
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from typing import Any

import peft
import timm
import torch
from measure import Arm, Row, Timing, interleave, publish
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

import mmpeft
from mmpeft.edits.together import Together

WORDS = 1024
TARGETS = ("attn.q", "attn.k", "attn.v", "attn.out", "mlp.gate", "mlp.up", "mlp.down")
PATTERN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = mmpeft.LoRA(rank=8, targets=TARGETS)
KINDS: dict[str, mmpeft.Method] = {
    "IA3": mmpeft.IA3(),
    "bottleneck adapters (Pfeiffer, 32 wide)": mmpeft.Pfeiffer(bottleneck=32),
    "soft prompts (8 vectors)": mmpeft.PromptTuning(tokens=8),
    "prefixes (8 tokens)": mmpeft.PrefixTuning(tokens=8),
}


@dataclass(frozen=True)
class Size:
    """How much to measure."""

    batch: int = 64
    counts: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    lengths: tuple[int, ...] = (1, 32)
    rounds: int = 7


def llama() -> nn.Module:
    """Return the frozen model with 4 layers of 512 and 28 linear layers in them, the same at each call."""
    torch.manual_seed(0)
    widths = {"hidden_size": 512, "intermediate_size": 1376, "num_hidden_layers": 4, "num_attention_heads": 8}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, num_key_value_heads=8, use_cache=False, **widths))
    return model.eval().requires_grad_(False)


def vit() -> nn.Module:
    """Return a ViT-S of 4 blocks for 64 x 64 pixels."""
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", pretrained=False, img_size=64, depth=4, num_classes=10)
    return model.eval().requires_grad_(False)


def adapted(model: nn.Module, method: mmpeft.Method, count: int) -> mmpeft.Adapters:
    """Add adapters a0, a1, ... with random weights."""
    for number in range(count):
        handle = mmpeft.adapt(model, method, name=f"a{number}")
        for _, parameter in handle.named_parameters(f"a{number}"):
            parameter.requires_grad_(False).normal_(std=0.02)
    return handle


def twin(handle: mmpeft.Adapters, count: int) -> Any:
    """Return peft's model with the same adapters."""
    config = peft.LoraConfig(r=8, lora_alpha=8, target_modules=PATTERN)
    model = peft.get_peft_model(llama(), config, adapter_name="a0")
    for number in range(1, count):
        model.add_adapter(f"a{number}", config)
    for name in handle.names:
        for key, value in handle.state_dict(name).items():
            layer, _, factor = key.rpartition(".")
            own = model.get_submodule(f"base_model.model.{_path(layer)}")
            getattr(own, factor)[name].weight.data.copy_(value)
    return model.eval()


def _path(layer: str) -> str:
    return layer.removesuffix(".lora")


def mixed(count: int, batch: int) -> list[str]:
    """Return a name for each sample, in random order."""
    names = [f"a{sample % count}" for sample in range(batch)]
    random.Random(0).shuffle(names)
    return names


@dataclass(frozen=True)
class Ours:
    """A model of ours, with the ways to run it."""

    model: nn.Module
    handle: mmpeft.Adapters
    inputs: Tensor

    def frozen(self, _: object = None) -> Any:
        with self.handle.off():
            return self.model(self.inputs)

    def one(self, _: object = None) -> Any:
        return self.model(self.inputs)

    def routed(self, names: list[str | None]) -> Any:
        with self.handle.route(names):
            return self.model(self.inputs)

    def arms(self, names: list[str | None]) -> dict[str, Arm]:
        self.handle.activate("a0")
        return {"frozen": Arm(self.frozen), "one": Arm(self.one), "ours": Arm(lambda _: self.routed(names))}


def against_peft(size: Size, count: int, batch: int) -> Iterator[Row]:
    """Compare every number of adapters up to ``count`` with peft, and with one adapter for the whole batch."""
    model = llama()
    handle = adapted(model, LORA, count)
    theirs = twin(handle, count)
    for length in size.lengths:
        ids = torch.randint(0, WORDS, (batch, length), generator=torch.Generator().manual_seed(0))
        ours = Ours(model, handle, ids)
        for chosen in [number for number in size.counts if number < count] + [count]:
            names = mixed(chosen, batch)
            mix = partial(theirs, input_ids=ids, adapter_names=names)
            torch.testing.assert_close(ours.routed([*names]).logits, mix().logits, rtol=1e-4, atol=1e-4)
            arms = ours.arms([*names]) | {"peft": Arm(lambda _, mix=mix: mix())}
            times = interleave(size.rounds, **arms)
            yield from _rows(f"LoRA, {batch} x {length} tokens, {_adapters(chosen)}", times)
        if chosen > 1:
            yield _changing(size, ours, f"LoRA, {batch} x {length} tokens, {count - 1} of {count} adapters")


def _rows(what: str, times: dict[str, Timing]) -> Iterator[Row]:
    yield Row(what, str(times["ours"]), str(times["peft"]), times["ours"].over(times["peft"]))
    yield _row(what + "; one for the whole batch", times, "one")
    yield _row(what + "; the frozen model", times, "frozen")


def _row(what: str, times: dict[str, Timing], other: str) -> Row:
    return Row(what, str(times["ours"]), str(times[other]), times["ours"].over(times[other]))


def _changing(size: Size, ours: Ours, what: str) -> Row:
    """Compare batches with the same adapters with batches that have other ones each time."""
    names = mixed(len(ours.handle.names), len(ours.inputs))
    sets = cycle([[names[1] if name == left else name for name in names] for left in ("a0", "a2")])
    times = interleave(
        size.rounds,
        ours=Arm(lambda names: ours.routed(names), lambda: next(sets)),
        one=Arm(lambda _: ours.one()),
    )
    return _row(f"{what}, other ones in each batch; one for the whole batch", times, "one")


def kinds(size: Size, count: int) -> Iterator[Row]:
    """Compare many adapters of the other kinds with one of them."""
    makers: dict[str, tuple[Callable[[], nn.Module], mmpeft.Method]] = {
        **{name: (llama, method) for name, method in KINDS.items()},
        "VPT (8 tokens, deep), ViT-S of 4 blocks": (vit, mmpeft.VPT(tokens=8, dropout=0.0)),
    }
    for name, (make, method) in makers.items():
        model = make()
        words = torch.randint(0, WORDS, (size.batch, 32))
        inputs = words if make is llama else torch.randn(size.batch, 3, 64, 64)
        ours = Ours(model, adapted(model, method, count), inputs)
        names = mixed(count, size.batch)
        times = interleave(size.rounds, **ours.arms([*names]))
        yield _row(f"{name}, {_adapters(count)}; one for the whole batch", times, "one")


def memory(size: Size, count: int) -> Row:
    """Count the bytes of the copies that a route makes, beside those of the adapters."""
    model = llama()
    handle = adapted(model, LORA, count)
    ours = Ours(model, handle, torch.zeros(size.batch, 1, dtype=torch.long))
    with handle.route(mixed(count, size.batch)):
        ours.one()
        calls = [call for module in model.modules() if "_graft" in module.__dict__ for call in module._graft.calls]
        stacks = [part for call in calls if isinstance(call, Together) for part in call.weights.kept]
    own = [parameter for name in handle.names for parameter in handle.state_dict(name).values()]
    copied, held = (sum(tensor.nbytes for tensor in tensors) for tensors in (stacks, own))
    what = f"LoRA, {_adapters(count)}: stacked copies; the adapters' own weights"
    return Row(what, f"{copied / 2**20:.1f} MiB", f"{held / 2**20:.1f} MiB", copied / held)


def _adapters(count: int) -> str:
    return "1 adapter" if count == 1 else f"{count} adapters"


@torch.no_grad()
def main() -> None:
    """Measure everything and publish the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few adapters and few rounds")
    parser.add_argument("--write", action="store_true", help="add the table to benchmarks/RESULTS.md")
    options = parser.parse_args()
    torch.set_num_threads(1)
    size = Size(batch=16, counts=(1, 4), rounds=3) if options.quick else Size()
    rows = [*against_peft(size, size.batch, size.batch)]
    if not options.quick:
        rows += against_peft(Size(counts=(), lengths=(1,)), 256, 256)
    rows += [*kinds(size, size.batch), memory(size, size.batch)]
    publish(
        "routing",
        rows,
        ("torch", "transformers", "timm", "peft"),
        options.write,
        ("mmpeft, routed", "peft, or as named"),
    )


if __name__ == "__main__":
    main()
