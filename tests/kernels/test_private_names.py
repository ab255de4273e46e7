"""Each private name of another library is there and does what is relied on; a failure here says which one went."""

from __future__ import annotations

import copy
import importlib
from typing import Any

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.overrides import TorchFunctionMode
from torch.utils.checkpoint import checkpoint

from mmpeft.kernels import private_names


def test_the_hooks_on_saved_tensors_are_seen() -> None:
    def pack(tensor: torch.Tensor) -> torch.Tensor:
        return tensor

    assert private_names.saved_tensor_hooks() is None
    with saved_tensors_hooks(pack, pack):
        assert private_names.saved_tensor_hooks()[0] is pack


def test_a_checkpoint_is_known_by_its_hooks_and_holds_what_it_computes_again() -> None:
    seen: list[Any] = []

    def block(x: torch.Tensor) -> torch.Tensor:
        seen.append(private_names.saved_tensor_hooks())
        return x.exp()

    checkpoint(block, torch.ones(2, requires_grad=True), use_reentrant=False)
    pack = seen[0][0]
    assert pack.__module__ == "torch.utils.checkpoint"
    assert any(hasattr(cell.cell_contents, "recompute_fn") for cell in pack.__closure__)


def test_function_transforms_are_seen_and_forbid_hooks() -> None:
    def inside(x: torch.Tensor) -> torch.Tensor:
        assert private_names.is_transformed()
        return x.sum()

    def forbidding(x: torch.Tensor) -> torch.Tensor:
        assert not private_names.allows_saved_tensor_hooks()
        return x.sum()

    torch.func.grad(inside)(torch.ones(2))
    torch.func.jacrev(forbidding)(torch.ones(2))
    assert not private_names.is_transformed()
    assert private_names.allows_saved_tensor_hooks()


def test_fake_tensors_are_seen() -> None:
    assert not private_names.has_fake_mode()
    with FakeTensorMode():
        assert private_names.has_fake_mode()


def test_no_function_mode_watches_within() -> None:
    class Counting(TorchFunctionMode):
        calls = 0

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Counting.calls += 1
            return func(*args, **(kwargs or {}))

    with Counting():
        torch.ones(2).exp()
        before = Counting.calls
        assert before > 0
        with private_names.without_function_modes():
            torch.ones(2).exp()
        assert Counting.calls == before


def test_views_share_a_storage_and_meta_tensors_have_one_each() -> None:
    x, y = torch.empty(4, device="meta"), torch.empty(4, device="meta")
    assert private_names.storage_number(x) == private_names.storage_number(x[1:])
    assert private_names.storage_number(x) != private_names.storage_number(y)


def test_what_was_compiled_is_counted() -> None:
    assert isinstance(private_names.has_compiled(), bool)
    torch.compile(lambda x: x + 1, backend="eager")(torch.ones(2))
    assert private_names.has_compiled()


def test_a_convolution_pads_as_it_says() -> None:
    layer, x = nn.Conv2d(2, 3, 3, padding=1, padding_mode="circular"), torch.randn(1, 2, 5, 5)
    assert layer.bias is not None
    expected = layer(x) - layer.bias[:, None, None]
    torch.testing.assert_close(private_names.convolved(layer, x, layer.weight), expected)


def test_packed_projections_are_told_from_others() -> None:
    assert private_names.packs_projections(nn.MultiheadAttention(4, 2))
    assert not private_names.packs_projections(nn.MultiheadAttention(4, 2, kdim=6))


def test_transformers_classes_and_kernels_by_configuration() -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    assert private_names.class_for(transformers.AutoModelForCausalLM, config) is transformers.LlamaForCausalLM
    assert private_names.class_for(transformers.AutoModelForImageClassification, config) is None
    model = private_names.built(transformers.LlamaForCausalLM, config)
    assert private_names.attention_of(model.config) == "sdpa"
    told = copy.copy(model.config)
    private_names.tell_attention(told, "eager")
    assert private_names.attention_of(told) == "eager"
    assert private_names.attention_of(model.config) == "sdpa"


def test_flux_packs_and_unpacks_latents() -> None:
    diffusers = pytest.importorskip("diffusers")
    pipeline: Any = diffusers.FluxPipeline.__new__(diffusers.FluxPipeline)
    pipeline.__dict__["vae_scale_factor"] = 8
    latents = torch.randn(2, 4, 6, 8)
    tokens = private_names.flux_packed(pipeline, latents)
    assert tokens.shape == (2, 12, 16)
    assert private_names.flux_positions(pipeline, latents).shape == (12, 3)
    torch.testing.assert_close(private_names.flux_unpacked(pipeline, tokens, (48, 64)), latents)


def test_accelerate_makes_its_state_anew() -> None:
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    Accelerator(cpu=True)
    private_names.forget_accelerator(AcceleratorState)
    assert AcceleratorState._shared_state == {}


def test_regular_expressions_are_read_as_a_tree() -> None:
    assert [str(code) for code, _ in private_names.parsed_expression("ab*")] == ["LITERAL", "MAX_REPEAT"]


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("torch._subclasses.fake_tensor", "FakeTensor"),
        ("torch.utils._python_dispatch", "TorchDispatchMode"),
        ("torch.utils._python_dispatch", "_disable_current_modes"),
        ("torch.utils._python_dispatch", "is_traceable_wrapper_subclass"),
        ("torch.utils._pytree", "tree_flatten"),
        ("torch.nn.modules.conv", "_ConvNd"),
        ("torch.nn.modules.batchnorm", "_BatchNorm"),
    ],
)
def test_what_is_used_as_it_is(module: str, name: str) -> None:
    assert hasattr(importlib.import_module(module), name)


def test_hooks_of_modules_are_seen() -> None:
    layer = nn.Linear(2, 2)
    assert not private_names.has_hooks(layer)
    layer.register_forward_pre_hook(lambda *_: None)
    assert private_names.has_hooks(layer)


def test_a_subclass_without_storage_sees_functions_unless_told_otherwise() -> None:
    class Seen(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return "seen"

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
            raise AssertionError

    tensor = private_names.without_storage(Seen, (2, 3), torch.empty(0, dtype=torch.float16), requires_grad=True)
    assert tensor.shape == "seen"
    with private_names.without_subclass_functions():
        assert (tensor.shape, tensor.dtype, tensor.requires_grad) == ((2, 3), torch.float16, True)
