"""The sides of benchmarks/train_*.py: the ways to train one model, with equal weights where they do the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import peft
import torch
from torch import Tensor, nn

import mmpeft

LEVELS = ("standard", "lean", "leanest")


@dataclass(frozen=True)
class Subject:
    """A model with random weights, a batch for it, and where LoRA goes: all linear layers of its blocks."""

    name: str
    make: Callable[[], nn.Module]
    """Returns the model in fp32."""
    batch: Mapping[str, Tensor]
    loss: Callable[[Any, Mapping[str, Tensor]], Tensor]
    targets: tuple[str, ...] | str
    """Our names of the layers."""
    pattern: str
    """The same layers for peft, as a regular expression over paths."""
    first: tuple[str, ...]
    """The modules whose outputs are the first that depend on an adapter."""
    checkpoint: Callable[[Any], object]
    """Turns on the library's own gradient checkpointing."""
    peft_path: Callable[[str], str] = lambda path: path
    """Turns our path of a layer into peft's."""
    peft_doubles: str = "no layer"
    """Part of the paths of layers whose delta peft adds twice in the forward pass, and once for the backward pass."""

    def model(self, dtype: torch.dtype) -> nn.Module:
        """Return the frozen model, the same at each call."""
        torch.manual_seed(0)
        return self.make().to(dtype).requires_grad_(False).train()


class Step(nn.Module):
    """A training step of one side: forward with the loss, backward, AdamW."""

    def __init__(self, subject: Subject, model: nn.Module, dtype: torch.dtype, autocast: bool) -> None:
        super().__init__()
        self.subject, self.model, self.autocast = subject, model, autocast
        self.batch = {k: v.to(dtype) if v.is_floating_point() else v for k, v in subject.batch.items()}
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=1e-4, fused=True) if trained else None

    def forward(self, **batch: Tensor) -> Tensor:
        """Return the loss."""
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            return self.subject.loss(self.model, batch).float()

    def step(self) -> None:
        """Make one step."""
        self(**self.batch).backward()
        if self.optimizer is not None:
            self.optimizer.step()
            self.optimizer.zero_grad()

    def adapter(self) -> dict[str, nn.Parameter]:
        """Return the adapter's weights by our keys, the fixed ones too; none of a side that has no adapter."""
        if not isinstance(self.model, peft.PeftModel):
            return {
                key: value
                for part in mmpeft.adapters(self.model).parts().values()
                for key, value in part.named_parameters()
            }
        plan = mmpeft.adapt(self.subject.model(torch.float32), lora(self.subject)).state_dict()
        return {key: self.model.get_parameter(self._peft_key(key)) for key in plan}

    def share(self, key: str, factor: str) -> float:
        """Return what is left of B's values, and of A's gradient, where peft adds a delta twice: one half."""
        doubled = isinstance(self.model, peft.PeftModel) and self.subject.peft_doubles in key
        return 0.5 if doubled and key.endswith(factor) else 1.0

    def _peft_key(self, key: str) -> str:
        site, _, factor = key.rpartition(".")
        path = self.subject.peft_path(site.removesuffix(".lora"))
        return f"base_model.model.{path}.{factor}.default.weight"


def lora(subject: Subject) -> mmpeft.LoRA:
    """Return our configuration of the adapter that all sides train."""
    return mmpeft.LoRA(rank=8, targets=subject.targets)


def ours(
    subject: Subject,
    dtype: torch.dtype,
    level: str = "standard",
    method: mmpeft.Method | None = None,
    quantized: bool = False,
) -> nn.Module:
    """LoRA (or another method) by mmpeft, at a level of memory."""
    model = subject.model(dtype)
    if quantized:
        mmpeft.quantize(model)
    mmpeft.adapt(model, lora(subject) if method is None else method)
    mmpeft.use_memory(model, level)
    return model


def theirs(
    subject: Subject, dtype: torch.dtype, full: bool = True, checkpoint: bool = False, quantized: bool = False
) -> Any:
    """LoRA by peft, its weights in fp32 (peft's default) or, without ``full``, in the model's precision."""
    model: Any = subject.model(dtype)
    if checkpoint:
        subject.checkpoint(model)
    if quantized:
        mmpeft.quantize(model)
        model.is_loaded_in_4bit = True  # which tells peft that its layers are bitsandbytes'
    config = peft.LoraConfig(r=8, lora_alpha=8, lora_dropout=0.0, target_modules=subject.pattern)
    return peft.get_peft_model(model, config, autocast_adapter_dtype=full).train()


def full_fine_tuning(subject: Subject, dtype: torch.dtype) -> nn.Module:
    """Train every weight."""
    return subject.model(dtype).requires_grad_(True)


def floor(subject: Subject, dtype: torch.dtype) -> nn.Module:
    """The frozen model whose backward pass carries gradients to the first place of an adapter: less can't train one.

    Its attention projects as ours does: torch's own copies frozen weights for each token where the input is transposed.
    """
    model = subject.model(dtype)
    mmpeft.use_attention(model, "sdpa")
    for path in subject.first:
        model.get_submodule(path).register_forward_hook(lambda module, args, y: y.requires_grad_())
    return model


@dataclass(frozen=True)
class Side:
    """One way to train; the model is built for a subject and a precision."""

    build: Callable[[Subject, torch.dtype], nn.Module]
    autocast: bool = False

    def step(self, subject: Subject, dtype: torch.dtype) -> Step:
        """Return its training step."""
        return Step(subject, self.build(subject, dtype), dtype, self.autocast)


OURS = {level: partial(ours, level=level) for level in LEVELS}
CHECKPOINTED = partial(theirs, checkpoint=True)
ANY = {"floor": Side(floor), **{f"mmpeft {level}": Side(build) for level, build in OURS.items()}, "peft": Side(theirs)}
SIDES: dict[str, dict[str, Side]] = {
    "fp32": {
        **ANY,
        "peft, gradient checkpointing": Side(CHECKPOINTED),
        "full fine-tuning": Side(full_fine_tuning),
    },
    "bf16": {
        **ANY,
        "peft, bf16 adapters": Side(partial(theirs, full=False)),
        "peft, bf16 adapters, gradient checkpointing": Side(partial(CHECKPOINTED, full=False)),
        "full fine-tuning": Side(full_fine_tuning),
        **{f"mmpeft {level}, autocast": Side(build, autocast=True) for level, build in OURS.items()},
        "peft, autocast": Side(theirs, autocast=True),
    },
}
"""By the precision of the frozen weights and of the batch, then by name."""
REFERENCE = {"fp32": "peft", "bf16": "peft, autocast"}
"""What the others are compared with: peft as its users train with it."""
