"""The mechanism: what stays as it was in a model that carries adapters."""

from __future__ import annotations

import copy
import inspect
from functools import partial
from typing import Any

import accelerate
import pytest
import timm
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, remove_weight_norm, weight_norm
from torch.nn.utils.parametrize import remove_parametrizations

import mmpeft


@pytest.fixture
def on_vit(make_case: Any) -> Any:
    return make_case("lora", "vit")


@pytest.fixture
def vit(on_vit: Any) -> Any:
    return on_vit.build()


def test_nothing_is_registered_on_hosts_and_a_published_checkpoint_loads(on_vit: Any, vit: Any) -> None:
    modules, state = dict(vit.named_modules()), copy.deepcopy(vit.state_dict())
    adapters = on_vit.adapt(vit, seed=1)
    adapted = on_vit.run(vit)
    assert {path for path, _ in vit.named_modules() if "mmpeft" not in path} == set(modules)
    assert all(isinstance(vit.get_submodule(path), type(module)) for path, module in modules.items())
    assert not any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in vit.modules())
    with torch.no_grad():
        vit.blocks[0].attn.qkv.weight.zero_()
    assert not torch.equal(on_vit.run(vit), adapted)
    vit.load_state_dict(state, strict=True)
    assert torch.equal(on_vit.run(vit), adapted)
    with pytest.raises(RuntimeError, match="Missing key"):
        vit.load_state_dict({key: value for key, value in state.items() if key != "head.bias"}, strict=True)
    partial = {"mmpeft.main.blocks.0.attn.q.lora.lora_A": adapters.state_dict()["blocks.0.attn.q.lora.lora_A"]}
    with pytest.raises(RuntimeError, match=r"Missing key.*mmpeft\.main"):
        vit.load_state_dict(state | partial, strict=True)


def test_a_sequential_root_and_shared_modules() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(2, 4)
    plain = model(x)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="all"))
    assert torch.equal(model(x), plain) and len(adapters.parameters()) == 2
    with torch.no_grad():
        adapters.parameters()[1].normal_()
    delta = adapters.parameters()[1] @ adapters.parameters()[0]
    weight = shared.weight + delta
    expected = (x @ weight.T + shared.bias).relu() @ weight.T + shared.bias
    torch.testing.assert_close(model(x), expected)
    model(x).sum().backward()
    adapters.check_gradients()


def test_tied_parameters_stay_tied() -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    model = BertForMaskedLM(config).eval()
    ids = torch.arange(6)[None]
    count = sum(parameter.numel() for parameter in model.parameters())
    plain, state = model(ids).logits, copy.deepcopy(model.state_dict())
    adapters = mmpeft.adapt(model, "full_fine_tuning")
    assert adapters.report().trainable == count
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.mul_(1.1)
    adapted = model(ids).logits
    adapters.merge()
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    torch.testing.assert_close(model(ids).logits, adapted)
    adapters.unmerge()
    adapters.remove()
    assert torch.equal(model(ids).logits, plain)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_adapting_is_all_or_nothing(vit: Any) -> None:
    vit.blocks[2].attn.qkv.forward = vit.blocks[2].attn.qkv.forward
    vit.norm.weight.requires_grad_(False)
    keys = list(vit.state_dict())
    with pytest.raises(ValueError, match="Linear has a forward of its own instance"):
        mmpeft.adapt(vit, "lora")
    assert list(vit.state_dict()) == keys and type(vit.blocks[0].attn.qkv) is nn.Linear
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == ["norm.weight"]
    adapters = mmpeft.adapt(vit, "pfeiffer")
    adapters.remove()
    assert [name for name, p in vit.named_parameters() if not p.requires_grad] == ["norm.weight"]


def test_a_host_may_be_called_by_keyword() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(4, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x) + self.inner(x)

    model, x = Model(), torch.randn(3, 4)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="all"))
    with torch.no_grad():
        adapters.parameters()[1].normal_()
    delta = adapters.parameters()[1] @ adapters.parameters()[0]
    torch.testing.assert_close(model(x), 2 * x @ (model.inner.weight + delta).T)


def test_the_encoder_layer_of_torch_does_not_pass_its_adapters_by() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), torch.randn(2, 5, 8)
    with torch.no_grad():
        plain = model(x)
        first = mmpeft.adapt(model, mmpeft.LoRA(rank=2), name="a")
        mmpeft.adapt(model, mmpeft.NormTuning(), name="b")
        for parameter in first.parameters("a") + first.parameters("b"):
            parameter.add_(torch.randn_like(parameter))
        first.activate("a", "b")
        fast = model(x)
        with torch.enable_grad():
            torch.testing.assert_close(model(x), fast)
        assert not torch.allclose(fast, plain, atol=1e-2)
        first.remove("b")
        first.remove("a")
        assert torch.equal(model(x), plain)
    assert model.layers[0].activation_relu_or_gelu == 1


def test_functional_call_and_a_copied_block(on_vit: Any, vit: Any) -> None:
    frozen = on_vit.run(vit)
    on_vit.adapt(vit, seed=1)
    zeros = {name: torch.zeros_like(p) for name, p in vit.named_parameters() if name.startswith("mmpeft")}
    torch.testing.assert_close(torch.func.functional_call(vit, zeros, (on_vit.batch(),)), frozen)
    x = torch.randn(1, 17, 32)
    assert torch.equal(copy.deepcopy(vit.blocks[1])(x), vit.blocks[1](x))


@torch.no_grad()
@pytest.mark.parametrize("method", ["vpt", "full_fine_tuning", "lora"])
def test_every_door_of_the_model_leads_through_the_adapter(method: str, make_case: Any) -> None:
    case = make_case(method, "vit")
    vit = case.build()
    plain = vit.forward_intermediates(case.batch())
    case.adapt(vit, seed=1)
    features, maps = vit.forward_intermediates(case.batch())
    assert [item.shape for item in maps] == [item.shape for item in plain[1]]
    torch.testing.assert_close(vit.forward_head(features), vit(case.batch()))
    torch.testing.assert_close(vit.forward_features(case.batch()), features)
    assert not torch.allclose(maps[0], plain[1][0], atol=1e-3)
    early = vit.forward_intermediates(case.batch(), indices=[0], stop_early=True, output_fmt="NLC")
    assert early[0].shape == (3, 17, 32)


def test_shallow_prompts_refuse_intermediate_features(make_case: Any) -> None:
    case = make_case("vpt", "vit")
    vit = case.build()
    adapters = case.adapt(vit, deep=False)
    with pytest.raises(ValueError, match="flow through several blocks"):
        vit.forward_intermediates(case.batch())
    with adapters.off():
        vit.forward_intermediates(case.batch())


@torch.no_grad()
@pytest.mark.parametrize("method", ["pfeiffer", "adaptformer", "lora", "full_fine_tuning"])
def test_stochastic_depth_draws_as_before(method: str, make_case: Any) -> None:
    from timm.layers import DropPath

    case = make_case(method, "vit")
    vit = case.build().train()
    for block in vit.blocks:
        block.drop_path1, block.drop_path2 = DropPath(0.5), DropPath(0.5)
    torch.manual_seed(0)
    plain = case.run(vit)
    case.adapt(vit)
    torch.manual_seed(0)
    assert torch.equal(case.run(vit), plain)


@torch.no_grad()
def test_dropout_follows_train_and_eval(on_vit: Any, vit: Any) -> None:
    on_vit.adapt(vit.train(), seed=1, dropout=0.5)
    assert not torch.equal(on_vit.run(vit), on_vit.run(vit))
    vit.eval()
    assert torch.equal(on_vit.run(vit), on_vit.run(vit))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_precision_of_the_weights(dtype: torch.dtype, make_case: Any) -> None:
    for method in ("lora", "dora", "adaptformer", "full_fine_tuning", "ssf", "vpt"):
        case = make_case(method, "vit")
        vit, batch = case.build().to(dtype), case.batch().to(dtype)
        adapters = case.adapt(vit, seed=1)
        kept = torch.float64 if dtype == torch.float64 else torch.float32
        assert {parameter.dtype for parameter in adapters.parameters()} == {kept}
        assert vit(batch).dtype == dtype
        vit.to(torch.float64)
        assert vit(batch.double()).dtype == torch.float64
        assert {parameter.dtype for parameter in adapters.parameters()} == {torch.float64}


def test_a_grafted_class_has_the_name_and_the_signature_of_its_own(make_case: Any) -> None:
    vit = make_case("lora", "vit").build
    model = vit()
    plain, signature = type(model), inspect.signature(model.forward)
    mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    with mmpeft.use_memory(model, "lean"):
        grafted = type(model)
        assert grafted is not plain and issubclass(grafted, plain)
        for name in ("__name__", "__qualname__", "__module__"):
            assert getattr(grafted, name) == getattr(plain, name)
        assert inspect.signature(model.forward) == signature
        assert inspect.signature(model.forward_features) == inspect.signature(vit().forward_features)
        assert repr(model).startswith(f"{plain.__name__}(")


def test_a_container_as_the_model_is_as_long_as_before() -> None:
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(3, 4)
    layers, cls = [*model], type(model)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="all"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    expected = model(x)
    assert len(model) == 3 and [*model] == layers and model[-1] is layers[-1] and [*model[1:]] == layers[1:]
    model.append(nn.Flatten())
    assert [*model._modules] == ["0", "1", "2", "3", "mmpeft"] and torch.equal(model(x), expected)
    twin = copy.deepcopy(model)
    assert len(twin) == 4 and torch.equal(twin(x), expected)
    del model[-1]
    adapters.remove()
    assert type(model) is cls and [*model] == layers


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("rows", [1, 5])
def test_without_a_graph_a_layer_computes_the_same(dtype: torch.dtype, rows: int) -> None:
    """Decoding takes a shorter way; factors wider than x are used as they are, which rounds less."""
    model = nn.Sequential(nn.Linear(16, 8), nn.Identity()).to(dtype)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=4, targets="all"))
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.normal_()
    adapters.activate("main", weights=[0.5])
    x = torch.randn(rows, 16, dtype=dtype)
    with torch.no_grad():
        found = model(x)
    if dtype == torch.bfloat16:
        exact = copy.deepcopy(model).double()(x.double())
        assert (found - exact).norm() <= 1.01 * (model(x) - exact).norm() + 2**-9 * exact.norm()
    else:
        assert torch.equal(found, model(x))


@pytest.mark.parametrize("method", [mmpeft.LinearProbe(), mmpeft.NormTuning()])
def test_statistics_of_the_base_stay_in_a_loop_of_ones_own(method: Any, tmp_path: Any) -> None:
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=3).eval()
    frozen, classes = copy.deepcopy(model), [type(module) for module in model.modules()]
    x = 3 * torch.randn(4, 3, 32, 32) + 1
    adapters = mmpeft.adapt(model, method)
    optimizer = torch.optim.SGD(adapters.parameters(), 1e-2)
    model.train()
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    adapters.save(tmp_path / "a")
    fresh = copy.deepcopy(frozen)
    mmpeft.load(fresh, tmp_path / "a")
    with torch.no_grad():
        assert torch.equal(fresh(x), model.eval()(x))
        with adapters.off():
            assert torch.equal(model(x), frozen(x))
    adapters.remove()
    assert [type(module) for module in model.modules()] == classes
    assert all(map(torch.equal, model.buffers(), frozen.buffers()))


@pytest.mark.parametrize("old", [True, False], ids=["weight_norm", "parametrised"])
def test_a_host_that_was_parametrised_since_has_its_class_back(vit: Any, old: bool) -> None:
    images = torch.randn(1, 3, 32, 32)
    before = vit(images)
    adapters = mmpeft.adapt(vit, mmpeft.LoRA(rank=2, targets="all"))
    host, other = vit.blocks[0].attn.qkv, vit.blocks[1].attn.qkv
    for layer in (host, other):
        (weight_norm if old else parametrizations.weight_norm)(layer)
    close = partial(torch.testing.assert_close, rtol=1e-5, atol=1e-5)  # fp32, the weight put together again
    close(vit(images), before)
    with pytest.raises(ValueError, match=r"blocks.0.attn.qkv: its weight is made of others at each call"):
        adapters.merge()
    remove = remove_weight_norm if old else partial(remove_parametrizations, tensor_name="weight")
    remove(host)
    adapters.remove()
    close(vit(images), before)
    remove(other)
    close(vit(images), before)
    assert type(host) is type(other) is nn.Linear


def test_what_knows_no_edits_is_refused(vit: Any) -> None:
    adapters = mmpeft.adapt(vit, mmpeft.LoRA(rank=2))
    adapters.activate()
    with pytest.raises(ValueError, match=r"torch.jit.script: an adapted model can't be scripted: .*merge_and_unload"):
        torch.jit.script(vit)
    adapters.remove()
    assert "mmpeft" not in vit._modules


@pytest.mark.parametrize("method", [mmpeft.LoRA(rank=2), mmpeft.Houlsby(bottleneck=2)], ids=["lora", "houlsby"])
def test_weights_that_accelerate_moved_away_are_named(vit: Any, method: mmpeft.Method) -> None:
    mmpeft.adapt(vit, method)
    accelerate.cpu_offload(vit, execution_device="cpu")
    with pytest.raises(ValueError, match="the adapter's weights are on the meta device: accelerate's offloading"):
        vit(torch.randn(1, 3, 32, 32))
