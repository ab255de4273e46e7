"""The first half of a diffusers UNet on its own: what a ControlNet copies."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from mmpeft.anatomies.hosts import plain_class

PARTS = ("conv_in", "time_proj", "time_embedding", "class_embedding", "add_time_proj", "add_embedding", "down_blocks",
         "mid_block")  # fmt: skip
Arguments = dict[str, Any]


class UNetEncoder(nn.Module):
    """A copy of a UNet's encoder and middle block, with the UNet's own weights and none of its adapters.

    It returns the hidden states that the UNet's decoder would be handed: one per skip connection, and the middle one.
    """

    def __init__(self, unet: Any) -> None:
        super().__init__()
        with torch.device("meta"):
            fresh: Any = plain_class(unet).from_config(unet.config)  # type: ignore[attr-defined]
        device = next(unet.parameters()).device
        state = {key: value for key, value in unet.state_dict().items() if "mmpeft" not in key.split(".")}
        for name in PARTS:
            part = getattr(fresh, name, None)
            if isinstance(part, nn.Module):
                part.to_empty(device=device)
                tensors = {key.removeprefix(f"{name}."): v for key, v in state.items() if key.startswith(f"{name}.")}
                if device.type != "meta":
                    part.load_state_dict(tensors)
            self.add_module(name, part)
        for name in ("config", "time_embed_act"):
            object.__setattr__(self, name, getattr(fresh, name, None))
        self.kind = plain_class(unet)
        self.channels = [*_channels(fresh)]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights."""
        return self.conv_in.weight.dtype  # type: ignore[union-attr, return-value]

    def forward(self, arguments: Arguments, hint: Tensor) -> list[Tensor]:
        """Return the hidden states for a UNet's arguments; ``hint`` is added to the embedded sample."""
        sample, text, added = arguments["sample"], arguments["encoder_hidden_states"], arguments["added_cond_kwargs"]
        kind: Any = self.kind
        time = kind.get_time_embed(self, sample=sample, timestep=arguments["timestep"])
        time = self.time_embedding(time, arguments["timestep_cond"])  # type: ignore[operator]
        classes = kind.get_class_embed(self, sample=sample, class_labels=arguments["class_labels"])
        time = time if classes is None else time + classes
        further = kind.get_aug_embed(self, emb=time, encoder_hidden_states=text, added_cond_kwargs=added or {})
        time = time if further is None else time + further
        x = self.conv_in(sample) + hint  # type: ignore[operator]
        features = [x]
        attended = {"encoder_hidden_states": text, "attention_mask": arguments["attention_mask"]}
        attended["encoder_attention_mask"] = arguments["encoder_attention_mask"]
        for block in self.down_blocks:  # type: ignore[union-attr]
            x, states = block(hidden_states=x, temb=time, **(attended if _attends(block) else {}))
            features += states
        middle = self.mid_block
        return [*features, middle(x, time, **(attended if _attends(middle) else {}))]  # type: ignore[operator]


def _attends(block: Any) -> bool:
    return bool(getattr(block, "has_cross_attention", False))


def _channels(unet: Any) -> list[int]:
    """Return the channels of each skip connection, and of the middle block."""
    channels = [unet.conv_in.out_channels]
    for block in unet.down_blocks:
        channels += [resnet.out_channels for resnet in block.resnets]
        channels += [sampler.out_channels for sampler in block.downsamplers or ()]
    return [*channels, unet.mid_block.resnets[-1].out_channels]


def bound(unet: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> Arguments:
    """Return a UNet's arguments by name, with the defaults of those not given."""
    kind: Any = plain_class(unet)
    call = inspect.signature(kind.forward).bind(unet, *args, **kwargs)
    call.apply_defaults()
    return {name: value for name, value in call.arguments.items() if name != "self"}


def with_residuals(arguments: Arguments, residuals: list[Tensor]) -> Arguments:
    """Return a UNet's arguments with residuals added at the skip connections and, the last one, at the middle block."""
    *skips, middle = residuals
    before = arguments["down_block_additional_residuals"]
    if before is not None:
        skips = [old + new for old, new in zip(before, skips, strict=True)]
        middle = arguments["mid_block_additional_residual"] + middle
    return arguments | {"down_block_additional_residuals": skips, "mid_block_additional_residual": middle}


def with_features(arguments: Arguments, features: list[Tensor]) -> Arguments:
    """Return a UNet's arguments with feature maps added behind the blocks of its encoder, in a list of their own."""
    before = arguments["down_intrablock_additional_residuals"]
    return arguments | {"down_intrablock_additional_residuals": _sums(before or [], features)}


def _sums(old: list[Tensor], new: list[Tensor]) -> list[Tensor]:
    """Add maps pairwise; the longer list's last one, which is for the middle block, stays alone."""
    both = [a + b for a, b in zip(old, new, strict=False)]
    return [*both, *old[len(both) :], *new[len(both) :]]
