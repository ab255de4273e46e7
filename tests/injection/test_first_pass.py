"""The guard of the first pass: layers whose weights a model reads elsewhere are named, and not merged."""

from __future__ import annotations

import copy
import warnings

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from timm.models._features_fx import create_feature_extractor as timm_extractor
from torch import Tensor, nn
from torchvision.models.feature_extraction import create_feature_extractor

import mmpeft

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))


class ReadsPast(nn.Module):
    """Calls one of its layers, and computes with the weight of the other."""

    def __init__(self) -> None:
        super().__init__()
        self.called, self.read = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.called(x).relu(), self.read.weight)


class Sparse(nn.Module):
    """Sends everything to the first of its experts."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.experts[0](x)


class Model(nn.Module):
    """One part, called or not."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part, self.head = part, nn.Linear(8, 2)

    def forward(self, x: Tensor, skip: bool = False) -> Tensor:
        return self.head(x if skip else self.part(x))


def adapted(part: nn.Module) -> tuple[nn.Module, mmpeft.Adapters]:
    torch.manual_seed(0)
    model = Model(part)
    linear = [path for path, module in part.named_modules(prefix="part") if type(module) is nn.Linear]
    adapters = mmpeft.adapt(model, mmpeft.LoRA(targets=linear))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    return model, adapters


def test_a_layer_whose_weight_is_read_elsewhere_is_named_and_not_merged() -> None:
    model, adapters = adapted(ReadsPast())
    with pytest.warns(UserWarning, match=r"1 adapted layers: part\.read was not called in the model's first pass"):
        before = model(X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(model(X), before)
    assert "_graft" not in model.__dict__
    with pytest.raises(ValueError, match=r"merge: part\.read was never called.*Leave them out"):
        adapters.merge()
    assert torch.equal(model(X), before)


def test_it_is_told_of_a_copy_too_and_without_the_adapter_of_nothing() -> None:
    model, adapters = adapted(ReadsPast())
    twin = copy.deepcopy(model)
    with pytest.warns(UserWarning, match=r"part\.read"):
        twin(X)
    with warnings.catch_warnings(), adapters.off():
        warnings.simplefilter("error")
        model(X)
    adapters.remove()
    assert not any("_graft" in module.__dict__ for module in model.modules())


def test_an_expert_without_tokens_is_named_and_merged() -> None:
    model, adapters = adapted(Sparse())
    with pytest.warns(UserWarning, match=r"part\.experts\.1 was not called"):
        before = model(X)
    adapters.merge()
    torch.testing.assert_close(model(X), before, rtol=1e-4, atol=1e-4)  # fp32, summed in another order


def test_what_did_not_run_at_all_is_merged() -> None:
    model, adapters = adapted(Sparse())
    with pytest.warns(UserWarning, match="no adapted layer of tower 'model' ran"):
        model(X, skip=True)
    adapters.merge()


def test_a_later_pass_that_calls_it_frees_it() -> None:
    model, adapters = adapted(ReadsPast())
    with pytest.warns(UserWarning):
        model(X)
    model.part.read(X)
    adapters.merge()


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_tracing_by_fx_is_no_pass(library: str) -> None:
    """Extractors are made of an adapted model that has made no pass, compute as it does, and leave it to be merged."""
    torch.manual_seed(0)
    model: nn.Module
    if library == "timm":
        model = timm.create_model("test_vit").eval()
        adapters, images, node = mmpeft.adapt(model, mmpeft.LoRA(rank=2)), torch.randn(1, 3, 160, 160), "head"
    else:
        size = {"image_size": 32, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
        model = torchvision.models.VisionTransformer(**size, num_classes=3).eval()
        adapters, images, node = mmpeft.adapt(model, mmpeft.LoRA(rank=2)), torch.randn(1, 3, 32, 32), "heads.head"
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*first pass")
        make = timm_extractor if library == "timm" else create_feature_extractor
        extractor = make(model, {node: "out"})
        torch.testing.assert_close(extractor(images)["out"], model(images), rtol=1e-5, atol=1e-5)
    adapters.merge()
