"""LoRA on open_clip's attention, both classes: equal to the weights by hand, in training and evaluation, fp32, bf16."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from open_clip.model import CLIP, CustomTextCLIP
from torch import Tensor, nn

import mmpeft
from mmpeft.kernels import updates
from mmpeft.kernels.dropout import keep_mask

WIDTH, HEADS, DEPTH, RANK, ALPHA = 32, 2, 2, 4, 6
KINDS: dict[str, Callable[[], nn.Module]] = {
    "MultiheadAttention": lambda: _build(CLIP),
    "MultiheadAttention, custom text": lambda: _build(CustomTextCLIP),
    "Attention": lambda: _build(CustomTextCLIP, block_type="custom"),
    "Attention, normed and scaled": lambda: _build(
        CustomTextCLIP, block_type="custom", qk_norm=True, scale_heads=True, scale_attn_inner=True
    ),
}
SETS = [("q",), ("k",), ("v",), ("out",), ("q", "k", "v", "out")]
PRECISIONS = {"fp32": (torch.float32, 1e-5), "bf16": (torch.bfloat16, 3e-2)}


def _build(cls: Any, **options: Any) -> nn.Module:
    torch.manual_seed(0)
    size = {"layers": DEPTH, "width": WIDTH, **options}
    vision = {"image_size": 16, "patch_size": 8, "head_width": WIDTH // HEADS, **size}
    model: nn.Module = cls(16, vision, {"context_length": 6, "vocab_size": 50, "heads": HEADS, **size})
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.requires_grad_(False)


def lora(names: tuple[str, ...]) -> mmpeft.LoRA:
    return mmpeft.LoRA(rank=RANK, alpha=ALPHA, targets=tuple(f"attn.{name}" for name in names))


def shaken(model: nn.Module, names: tuple[str, ...]) -> dict[str, Tensor]:
    """Adapt a model, move every weight from its start, and return them by key."""
    adapters = mmpeft.adapt(model, lora(names))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return {key: value.detach().double() for key, value in adapters.state_dict().items()}


class ByHand:
    """Both towers in float64, from the base's weights and A, B of each projection."""

    def __init__(self, model: nn.Module, own: dict[str, Tensor]) -> None:
        self.base = {k: v.detach().double() for k, v in model.state_dict().items() if not k.startswith("mmpeft.")}
        self.own, self.model = own, model

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor, path: str) -> Tensor:
        a, b = self.own.get(f"{path}.lora.lora_A"), self.own.get(f"{path}.lora.lora_B")
        return F.linear(x, weight if a is None or b is None else weight + ALPHA / RANK * b @ a, bias)

    def attention(self, x: Tensor, at: str, mask: Tensor | None) -> Tensor:
        rows = zip(
            "qkv", self.base[f"{at}.in_proj_weight"].chunk(3), self.base[f"{at}.in_proj_bias"].chunk(3), strict=True
        )
        q, k, v = (
            self.linear(x, w, b, f"{at}.{name}").unflatten(-1, (HEADS, -1)).transpose(1, 2) for name, w, b in rows
        )
        q, k = self.norm(q, f"{at}.ln_q"), self.norm(k, f"{at}.ln_k")
        scores = q @ k.transpose(-1, -2) / math.sqrt(WIDTH // HEADS)
        y = (scores if mask is None else scores + mask).softmax(-1) @ v * self.base.get(f"{at}.head_scale", 1.0)
        y = self.norm(y.transpose(1, 2).flatten(2), f"{at}.ln_inner")
        out = self.base[f"{at}.out_proj.weight"], self.base[f"{at}.out_proj.bias"]
        return self.linear(y, *out, f"{at}.out_proj")

    def norm(self, x: Tensor, at: str) -> Tensor:
        if f"{at}.weight" not in self.base:
            return x
        return F.layer_norm(x, x.shape[-1:], self.base[f"{at}.weight"], self.base[f"{at}.bias"])

    def blocks(self, x: Tensor, at: str, mask: Tensor | None) -> Tensor:
        for i in range(DEPTH):
            path = f"{at}transformer.resblocks.{i}"
            x = x + self.attention(self.norm(x, f"{path}.ln_1"), f"{path}.attn", mask)
            up, down = (
                [self.base[f"{path}.mlp.{name}.{kind}"] for kind in ("weight", "bias")] for name in ("c_fc", "c_proj")
            )
            x = x + F.linear(F.gelu(F.linear(self.norm(x, f"{path}.ln_2"), *up)), *down)
        return x

    def image(self, images: Tensor) -> Tensor:
        p = self.base
        x = F.conv2d(images.double(), p["visual.conv1.weight"], stride=8).flatten(2).transpose(1, 2)
        x = torch.cat([p["visual.class_embedding"].expand(len(x), 1, -1), x], 1) + p["visual.positional_embedding"]
        x = self.blocks(self.norm(x, "visual.ln_pre"), "visual.", None)
        return self.norm(x[:, 0], "visual.ln_post") @ p["visual.proj"]

    def text(self, ids: Tensor) -> Tensor:
        at = "text." if "text.token_embedding.weight" in self.base else ""
        x = self.base[f"{at}token_embedding.weight"][ids] + self.base[f"{at}positional_embedding"]
        mask = torch.full((6, 6), -math.inf, dtype=torch.float64).triu(1)
        x = self.norm(self.blocks(x, at, mask), f"{at}ln_final")
        return x[torch.arange(len(x)), ids.argmax(-1)] @ self.base[f"{at}text_projection"]


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(2, 3, 16, 16, generator=generator), torch.randint(1, 50, (3, 6), generator=generator)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("names", SETS, ids="+".join)
@pytest.mark.parametrize("kind", KINDS)
def test_outputs_are_those_of_the_weights_by_hand(
    kind: str, names: tuple[str, ...], precision: str, training: bool
) -> None:
    dtype, tolerance = PRECISIONS[precision]
    model: Any = KINDS[kind]().to(dtype)
    images, ids = inputs()
    frozen = ByHand(model, {})
    own = shaken(model, names)
    model.train(training)
    assert all(value.dtype == dtype for key, value in model.named_parameters() if not key.startswith("mmpeft."))
    expected = ByHand(model, own)
    for found, wanted, plain in (
        (model.encode_image(images.to(dtype)), expected.image(images), frozen.image(images)),
        (model.encode_text(ids), expected.text(ids), frozen.text(ids)),
    ):
        error, effect = ((part - wanted).abs().max() / wanted.abs().max() for part in (found, plain))
        assert error < tolerance < effect / 5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("names", SETS, ids="+".join)
def test_gradients_are_those_by_hand(kind: str, names: tuple[str, ...]) -> None:
    model: Any = KINDS[kind]().double().train()
    own = {key: value.requires_grad_() for key, value in shaken(model, names).items()}
    images, ids = inputs()
    found = model.encode_image(images.double()).square().sum() + model.encode_text(ids).square().sum()
    found.backward()
    expected = ByHand(model, own)
    wanted = expected.image(images).square().sum() + expected.text(ids).square().sum()
    for (key, parameter), gradient in zip(
        mmpeft.adapters(model).named_parameters(), torch.autograd.grad(wanted, list(own.values())), strict=True
    ):
        assert parameter.grad is not None, key
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5 * gradient.abs().max().item())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", ["MultiheadAttention", "Attention"])
def test_the_base_is_bit_identical_after_1000_steps(kind: str, dtype: torch.dtype) -> None:
    model: Any = KINDS[kind]().to(dtype).train()
    del model.visual.transformer.resblocks[1:]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    images, ids = (part[:2] for part in inputs())
    adapters = mmpeft.adapt(model, lora(("q", "k", "v", "out")))
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=1e-3, weight_decay=0.1)
    losses = []
    images = images.to(dtype)
    for _ in range(1000):
        image, text, _ = model(images, ids)
        loss = F.cross_entropy(10 * image.float() @ text.float().T, torch.arange(2))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.1 * losses[0]
    after = model.state_dict()
    assert all(torch.equal(after[key], value) for key, value in before.items())
    adapters.remove()
    assert list(model.state_dict()) == list(before)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in before.items())


def test_dropout_is_drawn_for_each_projection_and_only_in_training() -> None:
    model: Any = KINDS["MultiheadAttention"]()
    own = shaken(model, ("q", "k", "v"))
    mmpeft.adapters(model).remove()
    dropped = mmpeft.adapt(
        model, mmpeft.LoRA(rank=RANK, alpha=ALPHA, dropout=0.5, targets=("attn.q", "attn.k", "attn.v"))
    )
    dropped.load_state_dict({key: value.float() for key, value in own.items()})
    images, _ = inputs()
    expected = ByHand(model, own).image(images).float()
    torch.testing.assert_close(model.eval().encode_image(images), expected, atol=1e-4, rtol=1e-4)
    model.train()
    torch.manual_seed(0)
    first, second = model.encode_image(images), model.encode_image(images)
    assert not torch.equal(first, second)
    masks: list[Tensor] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(updates, "keep_mask", lambda *how: masks.append(mask := keep_mask(*how)) or mask)
        model.encode_image(images)
    assert len(masks) == 6
    assert not any(torch.equal(masks[i], masks[j]) for i in range(6) for j in range(i))
