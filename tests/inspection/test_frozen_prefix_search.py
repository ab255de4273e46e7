"""Where the prefix ends, for methods on models; and that a pass goes on from there to the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mmpeft
from mmpeft.anatomies.anatomy import own_modules
from mmpeft.inspection.frozen_prefix import FrozenPrefix, NoPrefixError
from mmpeft.inspection.frozen_prefix_search import find_prefix

LAST: dict[str, Any] = {"layers": "last:1"}
TEXT: dict[str, Any] = {"towers": "text"}
FOUND: list[tuple[str, str, dict[str, Any], str]] = [
    ("linear_probe", "vit", {}, "the input of head"),
    ("linear_probe", "deit_distilled", {}, "the output of norm"),
    ("linear_probe", "swin_v2", {}, "the input of head.fc"),
    ("linear_probe", "convnext", {}, "the input of head.fc"),
    ("side_tuning", "vit", {}, "the input of head"),
    ("lora", "vit", LAST, "the input of blocks.2"),
    ("lora", "vit", {"layers": [1, 2]}, "the input of blocks.1"),
    ("ia3", "eva", LAST, "the input of blocks.2"),
    ("dora", "beit", LAST, "the input of blocks.2"),
    ("fact", "dinov3", LAST, "the input of blocks.2"),
    ("vpt", "eva02", LAST, "the input of blocks.2"),
    ("bitfit", "dinov2", LAST, "the input of blocks.2"),
    ("full_fine_tuning", "qk_norm", LAST, "the input of blocks.2"),
    ("repadapter", "swin", LAST, "the input of layers.1.blocks.0"),
    ("ssf", "convnext", LAST, "the input of stages.3.blocks.0"),
    ("lora", "mlp", LAST, "the input of 2.1.1.fc1"),
    ("adaptformer", "open_clip", LAST, "the input of visual.transformer.resblocks.1"),
    ("convpass", "open_clip_attention", LAST, "the input of visual.transformer.resblocks.1"),
    ("vpt", "hf_clip", LAST, "the input of vision_model.encoder.layers.1"),
    ("prefix_tuning", "vit", LAST, "the input of blocks.2"),
    ("prefix_tuning", "open_clip", LAST, "the input of visual.transformer.resblocks.1"),
    ("norm_tuning", "siglip", LAST, "the input of vision_model.encoder.layers.1"),
    ("lora", "open_clip", TEXT, "the output of visual"),
    ("bitfit", "hf_clip", TEXT, "the output of visual_projection"),
    ("coop", "zero_shot", {}, "the input of head"),
    ("tip_adapter", "zero_shot", {}, "the input of head"),
    ("cocoop", "zero_shot", {}, "the output of backbone.visual, in front of its edits"),
    ("clip_adapter", "zero_shot", {}, "the output of backbone.visual, in front of its edits"),
    ("clip_adapter", "hf_clip", {}, "the output of vision_model.post_layernorm"),
    ("clip_adapter", "siglip", {}, "the output of vision_model.head, in front of its edits"),
    ("side_tuning", "open_clip", {}, "the output of visual, in front of its edits"),
]
MISSING: list[tuple[str, str, dict[str, Any], str]] = [
    ("lora", "vit", {}, r"the first edit sits in blocks\.0\.attn\.qkv"),
    ("vpt", "vit", {}, r"the first edit sits in blocks\.0,"),
    ("bitfit", "vit", {}, r"the first edit sits in patch_embed\.proj"),
    ("full_fine_tuning", "vit", {}, r"the first edit sits in patch_embed\.proj"),
    ("res_tuning_bypass", "vit", {}, r"the first edit sits in blocks\.0,"),
    ("adaptformer", "open_clip", {"layers": [0]}, r"the first edit sits in visual\.transformer\.resblocks\.0"),
    ("maple", "zero_shot", {}, r"the first edit sits in backbone\.visual\.ln_pre"),
]


def losses(case: Any, model: Any) -> Callable[[Any], Tensor]:
    return lambda batch: case.run(model, batch["image"]).square().sum()


def gradients(model: nn.Module, loss: Tensor) -> list[Tensor]:
    found = torch.autograd.grad(loss, mmpeft.adapters(model).parameters(), allow_unused=True)
    return [loss.detach(), *(gradient for gradient in found if gradient is not None)]


def search(case: Any, model: Any, run: Any = None) -> FrozenPrefix:
    return find_prefix(model, run or losses(case, model), {"image": case.batch(3)})


def prepared(make_case: Any, method: str, kind: str, options: dict[str, Any]) -> tuple[Any, Any]:
    case = make_case(method, kind)
    model = case.build().train()
    case.adapt(model, seed=1, **options)
    return case, model


@pytest.mark.parametrize(("method", "kind", "options", "place"), FOUND)
def test_it_ends_as_late_as_it_can(make_case: Any, method: str, kind: str, options: Any, place: str) -> None:
    case, model = prepared(make_case, method, kind, options)
    prefix = search(case, model)
    assert prefix.place == place
    assert prefix.reads_image == (method == "side_tuning")
    check_resumed(case, model, prefix)


def check_resumed(case: Any, model: Any, prefix: FrozenPrefix) -> None:
    """A pass of other images, more of them, goes on from what was kept to the same loss and gradients."""
    run = losses(case, model)
    images = case.batch(5) + 1
    stored = prefix.compute(lambda: run({"image": images}))
    expected = gradients(model, run({"image": images}))
    nothing = images if prefix.reads_image else torch.full_like(images, float("nan"))
    with prefix.resumed(stored):
        loss = run({"image": nothing})
    assert stored.shape == (5, *prefix.shape)
    assert all(map(torch.equal, gradients(model, loss), expected))
    assert not any("forward" in module.__dict__ for _, module in own_modules(model))


@pytest.mark.parametrize(("method", "kind", "options", "reason"), MISSING)
def test_where_there_is_none_it_says_why(make_case: Any, method: str, kind: str, options: Any, reason: str) -> None:
    case, model = prepared(make_case, method, kind, options)
    with pytest.raises(NoPrefixError, match=reason):
        find_prefix(model, losses(case, model), {"image": case.batch(3)})


def test_a_random_part_is_no_fixed_function(make_case: Any) -> None:
    case, model = prepared(make_case, "lora", "vit", LAST)
    model.blocks[0].attn.proj_drop.p = 0.1
    with pytest.raises(NoPrefixError, match="is random"):
        search(case, model)
    assert search(case, model.eval()).place == "the input of blocks.2"
    model.train().blocks[0].attn.proj_drop.p = 0.0
    model.blocks[2].attn.proj_drop.p = 0.1
    assert search(case, model).place == "the input of blocks.2"


@pytest.mark.parametrize("kind", ["vit", "hf_clip"])
def test_a_chosen_attention_kernel_changes_nothing(make_case: Any, kind: str) -> None:
    case, model = prepared(make_case, "lora", kind, LAST)
    place = search(case, model).place
    mmpeft.use_attention(model, "math")
    prefix = search(case, model)
    assert prefix.place == place
    check_resumed(case, model, prefix)


def test_a_model_that_is_called_twice_has_none(make_case: Any) -> None:
    case, model = prepared(make_case, "lora", "vit", LAST)
    with pytest.raises(NoPrefixError, match="several times"):
        search(case, model, lambda batch: (model(batch["image"]) + model(batch["image"].flip(-1))).sum())


def test_with_gradient_checkpointing_the_checkpointed_block_is_left_alone(make_case: Any) -> None:
    """It runs once more in the backward pass, when nothing is resumed any more."""
    case, model = prepared(make_case, "lora", "vit", LAST)
    model.set_grad_checkpointing()
    prefix = search(case, model)
    assert prefix.place == "the output of blocks.1"
    check_resumed(case, model, prefix)


def test_reentrant_checkpointing_has_none(make_case: Any) -> None:
    case, model = prepared(make_case, "linear_probe", "vit", {})
    model.requires_grad_(True)

    def loss(batch: Any) -> Tensor:
        return checkpoint(model, batch["image"].requires_grad_(), use_reentrant=True).sum()

    with pytest.raises(NoPrefixError, match="gradients of all that is trained can't be taken"):
        search(case, model, loss)


def test_text_may_come_before_the_image(make_case: Any) -> None:
    case, model = prepared(make_case, "lora", "open_clip", TEXT)
    text = (torch.arange(1, 10) * 5).expand(3, -1)

    def loss(batch: Any) -> Tensor:
        words = model.encode_text(text)
        return (words @ model.encode_image(batch["image"]).T).square().sum()

    prefix = search(case, model, loss)
    assert prefix.place == "the output of visual"
    assert all(module is not model.text for module, _ in prefix.skipped)


class Classifier(nn.Module):
    """A CLIP model inside another, entered by ``encode_image``."""

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = nn.Linear(16, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(nn.functional.normalize(self.backbone.encode_image(images), dim=-1))


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("head", "the input of head"),
        ("*.visual.transformer.resblocks.1.mlp.c_fc", "the input of backbone.visual.transformer.resblocks.1"),
    ],
)
def test_a_model_inside_another(target: str, place: str) -> None:
    from open_clip.model import CLIP

    size = {"layers": 2, "width": 32}
    vision = {"image_size": 32, "patch_size": 8, "head_width": 16, **size}
    model = Classifier(CLIP(16, vision, {"context_length": 9, "vocab_size": 50, "heads": 2, **size}))
    mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=(target,)))
    batch = {"image": torch.randn(3, 3, 32, 32)}
    assert find_prefix(model, lambda own: model(own["image"]).square().sum(), batch).place == place


class Pairs(nn.Module):
    """A block that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.act = nn.Tanh()

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        return x + self.act(self.linear(x)), state + x.mean()


class Stack(nn.Module):
    """Two streams through blocks; only with ``both`` the second one reaches the output."""

    def __init__(self, both: bool) -> None:
        super().__init__()
        self.both = both
        self.layers = nn.ModuleList(Pairs() for _ in range(3))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.zeros(())
        for layer in self.layers:
            x, state = layer(x, state)
        return self.head(x) + (state if self.both else 0)


@pytest.mark.parametrize("both", [False, True])
def test_what_flows_past_the_landing_is_noticed(both: bool) -> None:
    model = Stack(both)
    mmpeft.adapt(model, mmpeft.LoRA(rank=1, targets=("layers.2.linear",)))
    batch = {"image": torch.randn(4, 4)}
    if both:
        with pytest.raises(NoPrefixError, match=r"layers\.2\.linear"):
            find_prefix(model, lambda own: model(own["image"]).sum(), batch)
    else:
        assert find_prefix(model, lambda own: model(own["image"]).sum(), batch).place == "the input of layers.2"


def test_samples_without_a_picture_have_none(make_case: Any) -> None:
    case, model = prepared(make_case, "linear_probe", "vit", {})
    for batch in ({"text": torch.zeros(3, 4)}, {"image": torch.zeros(3, 4, dtype=torch.long)}):
        with pytest.raises(NoPrefixError, match="no 'image' of floating-point numbers"):
            find_prefix(model, losses(case, model), batch)


def test_a_model_that_refuses_nan_has_none(make_case: Any) -> None:
    case, model = prepared(make_case, "linear_probe", "vit", {})

    def careful(batch: Any) -> Tensor:
        if not batch["image"].isfinite().all():
            raise RuntimeError("broken picture")
        return model(batch["image"]).sum()

    with pytest.raises(NoPrefixError, match="NaN: broken picture"):
        search(case, model, careful)
