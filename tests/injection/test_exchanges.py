"""Modules that a library exchanges after injection: their edits are missed, never silently."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.layers import freeze_batch_norm_2d
from torch import Tensor, nn

import mmpeft


@pytest.fixture
def resnet() -> nn.Module:
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=5).eval()


def llama() -> Any:
    import transformers

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, vocab_size=50)).eval()


@torch.no_grad()
def shake(adapters: mmpeft.Adapters) -> None:
    for parameter in adapters.parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)


PICTURES = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
IDS = torch.arange(12).view(2, 6)
EXCHANGES: dict[str, Callable[[Any], Any]] = {
    "sync": nn.SyncBatchNorm.convert_sync_batchnorm,
    "freeze": freeze_batch_norm_2d,
    "classifier": lambda model: model.reset_classifier(7),
    "by hand": lambda model: setattr(model, "fc", nn.Linear(model.fc.in_features, 7)),
    "layer": lambda model: setattr(model, "layer2", timm.create_model("test_resnet").eval().layer2),
}


@torch.no_grad()
@pytest.mark.parametrize("exchange", EXCHANGES)
def test_a_pass_without_its_edits_is_refused(resnet: nn.Module, exchange: str) -> None:
    adapters = mmpeft.adapt(resnet, mmpeft.FullFineTuning())
    shake(adapters)
    EXCHANGES[exchange](resnet)
    with pytest.raises(ValueError, match=r"stands where adapter 'main' has edits .*adapters.remove\('main'\)"):
        resnet(PICTURES)
    for lost in (adapters.parameters, adapters.merge):
        with pytest.raises(ValueError, match="stands where adapter 'main' has edits"):
            lost()
    with adapters.off():
        frozen = resnet(PICTURES)
    adapters.remove()
    assert torch.equal(resnet(PICTURES), frozen)
    assert not any("_graft" in module.__dict__ for module in resnet.modules())


@torch.no_grad()
@pytest.mark.parametrize("method", [mmpeft.LinearProbe(), mmpeft.FullFineTuning()], ids=["head", "all"])
def test_a_resized_vocabulary_is_refused(method: mmpeft.Method) -> None:
    model = llama()
    adapters = mmpeft.adapt(model, method)
    model.resize_token_embeddings(60, mean_resizing=False)
    with pytest.raises(ValueError, match="stands where adapter 'main' has edits"):
        model(IDS)
    adapters.remove()
    assert model(IDS).logits.shape[-1] == 60


@torch.no_grad()
def test_exchanges_beside_the_edits_change_nothing() -> None:
    model = llama()
    adapters = mmpeft.adapt(model, mmpeft.LoRA())
    shake(adapters)
    before = model(IDS).logits
    model.resize_token_embeddings(60, mean_resizing=False)
    torch.testing.assert_close(model(IDS).logits[..., :50], before, rtol=0, atol=0)
    host = model.model.layers[0].self_attn
    host.q_proj = nn.Sequential(host.q_proj)  # around a host, which runs as before
    torch.testing.assert_close(model(IDS).logits[..., :50], before, rtol=0, atol=0)


@torch.no_grad()
def test_a_host_that_comes_back_is_one_again(resnet: nn.Module) -> None:
    adapters = mmpeft.adapt(resnet, mmpeft.FullFineTuning())
    shake(adapters)
    before, layer = resnet(PICTURES), resnet.layer2
    resnet.layer2 = nn.Identity()
    resnet.layer2 = layer
    assert torch.equal(resnet(PICTURES), before)
    assert adapters.parameters()


@torch.no_grad()
def test_a_copy_notices_too(resnet: nn.Module) -> None:
    mmpeft.adapt(resnet, mmpeft.FullFineTuning())
    twin = copy.deepcopy(resnet)
    twin.reset_classifier(7)
    with pytest.raises(ValueError, match="stands where adapter 'main' has edits"):
        twin(PICTURES)
    resnet(PICTURES)


def test_exchanged_batch_norms_keep_their_statistics(resnet: nn.Module) -> None:
    """Synchronised ones of a frozen base are as frozen as those that they come for."""
    mmpeft.adapt(resnet, mmpeft.LoRA(targets="*.conv1"))
    nn.SyncBatchNorm.convert_sync_batchnorm(resnet)
    before: dict[str, Tensor] = {name: value.clone() for name, value in resnet.named_buffers()}
    resnet.train()(PICTURES)
    assert all(torch.equal(value, before[name]) for name, value in resnet.named_buffers())


@torch.no_grad()
def test_what_was_exchanged_while_merged_is_not_put_back(resnet: nn.Module) -> None:
    adapters = mmpeft.adapt(resnet, mmpeft.NormTuning())
    shake(adapters)
    adapters.merge()
    merged = resnet(PICTURES)
    freeze_batch_norm_2d(resnet)
    torch.testing.assert_close(resnet(PICTURES), merged, rtol=1e-5, atol=1e-6)  # fp32, in another order
    with pytest.raises(ValueError, match="was exchanged while merged"):
        adapters.unmerge()
