"""ControlNet, IP-Adapter, Custom Diffusion, T2I-Adapter and new words on tiny denoisers: what the papers promise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

import mmpeft

CONTROL = mmpeft.ControlNet(widths=(8, 16))
IMAGE = mmpeft.IPAdapter(features=16)
BATCH = 2


def make_unet() -> UNet2DConditionModel:
    torch.manual_seed(0)
    return UNet2DConditionModel(
        sample_size=8, block_out_channels=(32, 64), layers_per_block=1, cross_attention_dim=24, attention_head_dim=8,
        norm_num_groups=8, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip


@pytest.fixture
def unet() -> UNet2DConditionModel:
    return make_unet()


@pytest.fixture
def inputs() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample, text = (torch.randn(shape, generator=generator) for shape in ((BATCH, 4, 8, 8), (BATCH, 5, 24)))
    return sample, torch.tensor([3, 700]), text


CONDITIONS: dict[str, Tensor] = {
    "control": torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(2)),
    "image": torch.randn(BATCH, 16, generator=torch.Generator().manual_seed(3)),
    "maps": torch.rand(BATCH, 3, 64, 64, generator=torch.Generator().manual_seed(4)),
}


def shake(adapters: Any) -> None:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)


@contextmanager
def everything(model: Any) -> Iterator[Any]:
    """A model with a ControlNet, an IP-Adapter, a T2I-Adapter and two LoRAs."""
    mmpeft.adapt(model, CONTROL, name="control")
    mmpeft.adapt(model, IMAGE, name="image")
    mmpeft.adapt(model, mmpeft.T2IAdapter(), name="maps")
    mmpeft.adapt(model, mmpeft.LoRA(targets=["attn.*", "cross.*"]), name="style")
    adapters = mmpeft.adapt(model, mmpeft.LoRA(targets=["cross.k", "cross.v"]), name="subject")
    names = ("control", "image", "maps", "style", "subject")
    adapters.activate(*names, trainable=True)
    shake(adapters)
    with adapters.given(CONDITIONS):
        yield adapters


@torch.no_grad()
def test_a_controlnet_starts_as_the_frozen_model(unet: Any, inputs: Any) -> None:
    before = unet(*inputs).sample
    adapters = mmpeft.adapt(unet, CONTROL, name="control")
    with adapters.given({"control": CONDITIONS["control"]}):
        assert torch.equal(unet(*inputs).sample, before)
        assert all(not residual.any() for residual in residuals(adapters, unet, inputs))
    with pytest.raises(ValueError, match=r"no control image: call the model within adapters\.given"):
        unet(*inputs)


def residuals(adapters: Any, unet: Any, inputs: Any) -> list[Tensor]:
    (edit,) = adapters._edits("control")
    return edit.residuals(edit.bound(unet, inputs, {}), 1.0)


def test_gradients_of_a_controlnet_wake_in_order(unet: Any, inputs: Any) -> None:
    adapters = mmpeft.adapt(unet, CONTROL, name="control")
    (edit,) = adapters._edits("control")
    optimizer = torch.optim.SGD(adapters.parameters(), lr=0.1)

    def awake() -> dict[str, bool]:
        with adapters.given({"control": CONDITIONS["control"]}):
            unet(*inputs).sample.square().sum().backward()
        parts = {"zeros": edit.zeros, "encoder": edit.encoder.down_blocks, "hint end": edit.hint.conv_out}
        parts["hint trunk"] = edit.hint.conv_in
        found = {name: any(bool(p.grad.any()) for p in part.parameters()) for name, part in parts.items()}
        optimizer.step()
        optimizer.zero_grad()
        return found

    assert awake() == {"zeros": True, "encoder": False, "hint end": False, "hint trunk": False}
    assert awake() == {"zeros": True, "encoder": True, "hint end": True, "hint trunk": False}
    assert awake() == {"zeros": True, "encoder": True, "hint end": True, "hint trunk": True}


@torch.no_grad()
def test_of_a_doubled_batch_guess_mode_controls_the_second_half(unet: Any, inputs: Any) -> None:
    plain = unet(*inputs).sample
    adapters = mmpeft.adapt(unet, CONTROL.model_copy(update={"guess": True}), name="control")
    shake(adapters)
    with adapters.given({"control": CONDITIONS["control"][:1]}):
        controlled = unet(*inputs).sample
    assert torch.equal(controlled[0], plain[0])
    assert not torch.allclose(controlled[1], plain[1])


@torch.no_grad()
def test_image_prompts_change_nothing_at_scale_zero(unet: Any, inputs: Any) -> None:
    before = unet(*inputs).sample
    adapters = mmpeft.adapt(unet, IMAGE, name="image")
    with adapters.given({"image": CONDITIONS["image"]}):
        assert not torch.allclose(unet(*inputs).sample, before)
        adapters.activate("image", weights=[0.0])
        assert torch.equal(unet(*inputs).sample, before)


def test_custom_diffusion_learns_nothing_from_the_start_of_the_text(unet: Any, inputs: Any) -> None:
    before = unet(*inputs).sample
    adapters = mmpeft.adapt(unet, mmpeft.CustomDiffusion())
    assert torch.equal(unet(*inputs).sample, before)
    sample, time, text = inputs
    text = text.clone()
    text[:, 1:] = 0
    unet(sample, time, text).sample.square().sum().backward()
    assert all(not parameter.grad.any() for parameter in adapters.parameters())
    adapters.merge()


def fill(theirs: ControlNetModel, edit: Any) -> None:
    """Copy our weights into diffusers' ControlNet."""
    names = ("conv_in", "time_embedding", "down_blocks", "mid_block")
    pairs = [(getattr(edit.encoder, name), getattr(theirs, name)) for name in names]
    pairs += [(edit.hint, theirs.controlnet_cond_embedding)]
    pairs += zip(edit.zeros, [*theirs.controlnet_down_blocks, theirs.controlnet_mid_block], strict=True)
    for ours, own in pairs:
        own.load_state_dict(ours.state_dict())


@torch.no_grad()
def test_several_controlnets_add_up_as_in_diffusers(unet: Any, inputs: Any) -> None:
    """Each with its image and scale; the second in guess mode, as its control image says."""
    images = CONDITIONS["control"], torch.rand(BATCH, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    plain, sums = make_unet(), []
    for number, (name, scale) in enumerate((("first", 0.7), ("second", 1.2))):
        adapters = mmpeft.adapt(unet, CONTROL, name=name)
        shake(adapters)
        theirs = ControlNetModel.from_unet(plain, conditioning_embedding_out_channels=(8, 16))
        fill(theirs, adapters._edits(name)[0])
        how = {"conditioning_scale": scale, "guess_mode": number == 1, "return_dict": False}
        down, middle = theirs(*inputs, images[number], **how)
        sums.append([*down, middle])
    *down, middle = (a + b for a, b in zip(*sums, strict=True))
    expected = plain(*inputs, down_block_additional_residuals=down, mid_block_additional_residual=middle).sample
    adapters.activate("first", "second", weights=[0.7, 1.2])
    with adapters.given({"first": images[0], "second": mmpeft.ControlImage(image=images[1], guess=True)}):
        torch.testing.assert_close(unet(*inputs).sample, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_everything_stacks_each_with_its_scale(unet: Any, inputs: Any) -> None:
    before, keys = unet(*inputs).sample, list(unet.state_dict())
    with everything(unet) as adapters:
        full = unet(*inputs).sample
        for name in adapters.names:
            weights = [0.3 if own == name else 1.0 for own in adapters.names]
            adapters.activate(*adapters.names, weights=weights)
            assert not torch.allclose(unet(*inputs).sample, full, atol=1e-5), name
        adapters.activate(*adapters.names)
        assert torch.equal(unet(*inputs).sample, full)
        with adapters.off():
            assert torch.equal(unet(*inputs).sample, before)
    for name in adapters.names:
        adapters.remove(name)
    assert torch.equal(unet(*inputs).sample, before)
    assert list(unet.state_dict()) == keys


@pytest.mark.parametrize("method", [CONTROL, IMAGE])
def test_what_takes_a_condition_serves_whole_batches(unet: Any, method: Any, inputs: Any) -> None:
    adapters = mmpeft.adapt(unet, method, name="main")
    with pytest.raises(ValueError, match="route: 'main' takes a condition"), adapters.route(["main", None]):
        unet(*inputs)


def test_what_takes_no_condition_is_named(unet: Any) -> None:
    mmpeft.adapt(unet, mmpeft.LoRA(), name="style")
    adapters = mmpeft.adapt(unet, CONTROL, name="control")
    for name, message in (
        ("style", r"given: 'style' takes no condition \(one of: control\)"),
        ("contrl", r"no adapter 'contrl' \(did you mean 'control'\?\)"),
    ):
        with pytest.raises(ValueError, match=message), adapters.given({name: 1}):
            pass


def test_new_words_leave_the_embedding_alone_under_weight_decay() -> None:
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    size |= {"vocab_size": 50, "max_position_embeddings": 9, "bos_token_id": 48, "eos_token_id": 49}
    text = CLIPTextModel(CLIPTextConfig(**size))
    before = text.get_input_embeddings().weight.clone()
    known = torch.tensor([[48, 1, 2, 3, 49]])
    plain = text(known).last_hidden_state
    adapters = mmpeft.adapt(text, mmpeft.TextualInversion(words=("<a>", "<b>"), ids=(50, 51), start=(3,)))
    assert torch.equal(text(known).last_hidden_state, plain)
    assert torch.allclose(text(torch.tensor([[48, 1, 2, 50, 49]])).last_hidden_state, plain, atol=1e-6)
    optimizer = torch.optim.AdamW(adapters.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(5):
        text(torch.tensor([[48, 51, 2, 50, 49]])).last_hidden_state.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(text.get_input_embeddings().weight, before)
    assert not torch.allclose(text(torch.tensor([[48, 1, 2, 50, 49]])).last_hidden_state, plain, atol=1e-3)
