"""Weights that a library reads without calling their layer: edits there are computed, merged and taken out exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from written_weights import written

import mmpeft

Run = Callable[[Any], Tensor]


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def _swin() -> tuple[nn.Module, Run]:
    from torchvision.models import SwinTransformer

    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [4, 4]}
    return SwinTransformer(num_classes=5, stochastic_depth_prob=0.0, **sizes), lambda m: m(noise(2, 3, 64, 64))


def _swin_v2() -> tuple[nn.Module, Run]:
    from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformer, SwinTransformerBlockV2

    sizes = {"patch_size": [4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [4, 4]}
    how = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2, "stochastic_depth_prob": 0.0}
    return SwinTransformer(num_classes=5, **how, **sizes), lambda m: m(noise(2, 3, 64, 64))


def _swin_3d() -> tuple[nn.Module, Run]:
    from torchvision.models.video.swin_transformer import SwinTransformer3d

    sizes = {"patch_size": [2, 4, 4], "embed_dim": 16, "depths": [2], "num_heads": [2], "window_size": [2, 4, 4]}
    model = SwinTransformer3d(num_classes=5, stochastic_depth_prob=0.0, **sizes)
    return model, lambda m: m(noise(2, 3, 4, 32, 32))


def _mamba(family: str) -> Callable[[], tuple[nn.Module, Run]]:
    def build() -> tuple[nn.Module, Run]:
        import transformers as t

        sizes = {"vocab_size": 64, "hidden_size": 32, "state_size": 4, "num_hidden_layers": 2, "pad_token_id": 0}
        model = getattr(t, f"{family}Model")(getattr(t, f"{family}Config")(**sizes))
        return model, lambda m: m(torch.arange(5, 19).view(2, 7)).last_hidden_state

    return build


def _vit() -> tuple[nn.Module, Run]:
    from torchvision.models import VisionTransformer

    sizes = {"image_size": 16, "patch_size": 8, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    model = VisionTransformer(num_classes=5, **sizes)
    nn.init.normal_(model.heads.head.weight)  # zero in torchvision: nothing would be seen of any edit
    return model, lambda m: m(noise(2, 3, 16, 16))


def _encoder() -> tuple[nn.Module, Run]:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2), lambda m: m(
        noise(2, 5, 16)
    )


def _decoder() -> tuple[nn.Module, Run]:
    stack = nn.TransformerDecoder(nn.TransformerDecoderLayer(16, 2, 32), 2)
    return stack, lambda m: m(noise(3, 2, 16), noise(5, 2, 16))


MODELS: dict[str, tuple[Callable[[], tuple[nn.Module, Run]], tuple[str, ...]]] = {
    "swin": (_swin, ("attn.qkv", "attn.out")),
    "swin_v2": (_swin_v2, ("attn.qkv", "attn.out")),
    "swin_3d": (_swin_3d, ("attn.qkv", "attn.out")),
    "mamba": (_mamba("Mamba"), ("*dt_proj",)),
    "falcon_mamba": (_mamba("FalconMamba"), ("*dt_proj",)),
    "torchvision_vit": (_vit, ("attn.q", "attn.k", "attn.v", "attn.out")),
    "torch_encoder": (_encoder, ("attn.q", "attn.v", "attn.out", "linear1")),
    "torch_decoder": (_decoder, ("attn.*", "cross.*")),
}


def built(name: str) -> tuple[nn.Module, Run, tuple[str, ...]]:
    torch.manual_seed(0)
    make, targets = MODELS[name]
    model, run = make()
    return model.double().eval().requires_grad_(False), lambda m: run(_Double(m)), targets


class _Double:
    """Calls a model with tensors of its precision."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    def __call__(self, *args: Tensor) -> Any:
        return self.model(*(x.double() if x.is_floating_point() else x for x in args))


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_low_rank_is_what_a_plain_model_with_the_written_weights_computes(name: str, grad: bool) -> None:
    model, run, targets = built(name)
    with torch.set_grad_enabled(grad):
        before = run(model)
        adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets=targets))
        assert torch.equal(run(model).detach(), run(model).detach())
        torch.testing.assert_close(run(model), before)
        for parameter in adapters.parameters():
            nn.init.normal_(parameter, std=0.3)
        live = run(model)
        assert (live - before).abs().max() > 1e-5
        torch.testing.assert_close(live, run(written(model, adapters)))
        adapters.merge()
        torch.testing.assert_close(run(model), live)
        adapters.unmerge()
        with adapters.off():
            assert torch.equal(run(model), before)
        adapters.remove()
        assert torch.equal(run(model), before)


@pytest.mark.parametrize("name", MODELS)
def test_biases_and_all_else_are_trained_there_too(name: str) -> None:
    """Full fine-tuning gives each parameter of the read layers a gradient, and computes with the trained copies."""
    model, run, _ = built(name)
    adapters = mmpeft.adapt(model, mmpeft.BitFit() if "mamba" not in name else mmpeft.FullFineTuning())
    before = run(model)
    before.sum().backward()
    adapters.check_gradients()
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        live = run(model)
        adapters.merge()
        torch.testing.assert_close(run(model), live)
        assert (live - before).abs().max() > 1e-3


def test_the_default_takes_the_attention_of_torchvision_s_vit() -> None:
    model, _, _ = built("torchvision_vit")
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=1))
    layers = [f"encoder.layers.encoder_layer_{index}.self_attention" for index in range(2)]
    paths = [site.path for part in adapters.parts().values() for site, _, _ in part.places]
    assert paths == [f"{layer}.{part}" for layer in layers for part in "qv"]


def test_two_adapters_share_a_switch_and_either_may_go() -> None:
    """An edit of one part stays when an edit of another part of the same layer goes."""
    model, run, _ = built("torch_encoder")
    with torch.no_grad():
        frozen = run(model)
        adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets=("linear1",)), name="a")
        mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets=("attn.v",)), name="b")
        for parameter in adapters.parameters():
            nn.init.normal_(parameter, std=0.3)
        adapters.activate("b")
        alone = run(model)
        adapters.remove("a")
        assert torch.equal(run(model), alone) and (alone - frozen).abs().max() > 1e-3
        with mmpeft.use_attention(model, "math"):
            pass
        torch.testing.assert_close(run(model), alone)
        adapters.remove("b")
        assert torch.equal(run(model), frozen)
