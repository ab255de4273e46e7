"""ControlNet, T2I-Adapter, Custom Diffusion and IP-Adapter beside diffusers' own: outputs and all gradients.

Both sides compute in double precision, so that 1e-5 of a gradient is not lost in rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_pipelines
import torch
from diffusers import ControlNetModel, T2IAdapter
from diffusers.models.attention_processor import CustomDiffusionAttnProcessor2_0
from torch import Tensor, nn

import mmpeft

BATCH = 2
Pairs = list[tuple[Tensor, Tensor]]
"""Weights of ours with diffusers' own."""
pytestmark = pytest.mark.parametrize("large", [False, True], ids=["sd", "sdxl"])


def make_unet(large: bool) -> Any:
    made = tiny_pipelines.stable_diffusion_xl if large else tiny_pipelines.stable_diffusion
    return made().unet.double().eval().requires_grad_(False)


def normal(*shape: int, seed: int, **options: Any) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64, **options)


def inputs(large: bool) -> dict[str, Any]:
    """A UNet's arguments, of which sample and text want gradients."""
    found: dict[str, Any] = {"sample": normal(BATCH, 4, 8, 8, seed=1).requires_grad_()}
    found["encoder_hidden_states"] = normal(BATCH, 5, 48 if large else 24, seed=2).requires_grad_()
    found["timestep"] = torch.tensor([3, 700])
    if large:
        sizes = torch.tensor([[16.0, 16.0, 0.0, 4.0, 16.0, 16.0]], dtype=torch.float64).expand(BATCH, -1)
        found["added_cond_kwargs"] = {"text_embeds": normal(BATCH, 16, seed=3), "time_ids": sizes}
    return found


def adapted(large: bool, method: mmpeft.Method, weight: float = 1.0) -> tuple[Any, mmpeft.Adapters]:
    """A UNet with an adapter of weight ``weight`` that is far from its start."""
    unet = make_unet(large)
    adapters = mmpeft.adapt(unet, method)
    with torch.no_grad():
        for number, parameter in enumerate(adapters.parameters()):
            parameter.add_(normal(*parameter.shape, seed=number) * 0.05)
    adapters.activate("main", weights=[weight])
    return unet, adapters


def agree(ours: Callable[..., Tensor], theirs: Callable[..., Tensor], pairs: Pairs, large: bool) -> None:
    """Compare outputs, and gradients of weights, sample and text."""
    own, other = inputs(large), inputs(large)
    found, expected = ours(**own), theirs(**other)
    close(found, expected)
    for output in (found, expected):
        output.square().sum().backward()
    assert pairs
    for a, b in [*pairs, *((own[name], other[name]) for name in ("sample", "encoder_hidden_states"))]:
        assert a.grad is not None and a.grad.any()
        close(a.grad, b.grad)


def close(found: Tensor, expected: Tensor | None) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def paired(ours: nn.Module, theirs: nn.Module) -> Iterator[tuple[Tensor, Tensor]]:
    """Copy a module's weights into another, and yield the pairs."""
    theirs.load_state_dict(ours.state_dict())
    return zip(ours.parameters(), theirs.parameters(), strict=True)


@pytest.mark.parametrize("guess", [False, True])
def test_a_controlnet_is_that_of_diffusers(large: bool, guess: bool) -> None:
    unet, adapters = adapted(large, mmpeft.ControlNet(widths=(8, 16), guess=guess), weight=0.7)
    plain, image = make_unet(large), normal(BATCH, 3, 16, 16, seed=4).sigmoid()
    net: Any = ControlNetModel.from_unet(plain, conditioning_embedding_out_channels=(8, 16)).double()
    (edit,) = adapters._edits("main")
    names = ("conv_in", "time_embedding", "down_blocks", "mid_block", *(("add_embedding",) if large else ()))
    modules = [(getattr(edit.encoder, name), getattr(net, name)) for name in names]
    modules += [(edit.hint, net.controlnet_cond_embedding)]
    modules += zip(edit.zeros, [*net.controlnet_down_blocks, net.controlnet_mid_block], strict=True)
    pairs = [pair for ours, theirs in modules for pair in paired(ours, theirs)]

    def theirs(**own: Any) -> Tensor:
        how = {"conditioning_scale": 0.7, "guess_mode": guess, "return_dict": False}
        down, middle = net(**own, controlnet_cond=image, **how)
        residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        output: Tensor = plain(**own, **residuals).sample
        return output

    with adapters.given({"main": image}):
        agree(lambda **own: unet(**own).sample, theirs, pairs, large)


def test_a_t2i_adapter_is_that_of_diffusers(large: bool) -> None:
    factor, kind = (8, "full_adapter_xl") if large else (4, "full_adapter")
    unet, adapters = adapted(large, mmpeft.T2IAdapter(factor=factor, depth=1), weight=0.7)
    plain, image = make_unet(large), normal(BATCH, 3, 32, 32, seed=4).sigmoid()
    net: Any = T2IAdapter(channels=[16, 32], num_res_blocks=1, downscale_factor=factor, adapter_type=kind).double()
    (edit,) = adapters._edits("main")
    pairs = [*paired(edit.conv_in, net.adapter.conv_in), *paired(edit.body, net.adapter.body)]

    def theirs(**own: Any) -> Tensor:
        maps = [0.7 * found for found in net(image)]
        output: Tensor = plain(**own, down_intrablock_additional_residuals=maps).sample
        return output

    with adapters.given({"main": image}):
        agree(lambda **own: unet(**own).sample, theirs, pairs, large)


@pytest.mark.parametrize("queries", [False, True])
def test_custom_diffusion_is_that_of_diffusers(large: bool, queries: bool) -> None:
    unet, adapters = adapted(large, mmpeft.CustomDiffusion(queries=queries))
    plain, pairs = make_unet(large), []
    weights = dict(adapters.named_parameters())
    processors: dict[str, nn.Module] = {}
    for name in plain.attn_processors:
        path = name.removesuffix(".processor")
        text = name.endswith("attn2.processor")
        size = {"hidden_size": plain.get_submodule(path).to_q.out_features}
        size["cross_attention_dim"] = plain.config.cross_attention_dim if text else None
        made = CustomDiffusionAttnProcessor2_0(train_kv=text, train_q_out=text and queries, **size)
        for key, parameter in made.double().named_parameters():
            module, _, leaf = key.replace("_custom_diffusion", "").rpartition(".")
            own = weights[f"main.{path}.{module}.custom_diffusion.{leaf}"]
            parameter.data.copy_(own)
            pairs.append((own, parameter))
        processors[name] = made
    assert len(pairs) == len(weights)
    plain.set_attn_processor(processors)
    agree(lambda **own: unet(**own).sample, lambda **own: plain(**own).sample, pairs, large)


def of_diffusers(name: str) -> str:
    """Return diffusers' name of an IP-Adapter's weight."""
    image = "encoder_hid_proj.image_projection_layers.0."
    if name.startswith("denoiser"):
        return name.replace("denoiser.ip_adapter.", image).replace(f"{image}proj", f"{image}image_embeds")
    return name.replace("attention.ip_adapter.", "processor.").replace(".weight", "_ip.0.weight")


def test_an_ip_adapter_is_that_of_diffusers(tmp_path: Path, large: bool) -> None:
    unet, adapters = adapted(large, mmpeft.IPAdapter(features=12), weight=0.7)
    plain, features = make_unet(large), normal(BATCH, 1, 12, seed=4)
    adapters.save(tmp_path / "ours")
    mmpeft.formats.export(tmp_path / "ours", tmp_path / "ip.bin", "ip_adapter", base=make_unet(large))  # type: ignore[attr-defined]
    plain._load_ip_adapter_weights(torch.load(tmp_path / "ip.bin"), low_cpu_mem_usage=False)
    plain.double()
    for processor in plain.attn_processors.values():
        if hasattr(processor, "scale"):
            processor.scale = [0.7]
    named = {name.removeprefix("main."): own for name, own in adapters.named_parameters()}
    pairs = [(own, plain.get_parameter(of_diffusers(name)).requires_grad_()) for name, own in named.items()]

    def theirs(**own: Any) -> Tensor:
        added = {**own.pop("added_cond_kwargs", {}), "image_embeds": [features]}
        output: Tensor = plain(**own, added_cond_kwargs=added).sample
        return output

    with adapters.given({"main": features[:, 0]}):
        agree(lambda **own: unet(**own).sample, theirs, pairs, large)
