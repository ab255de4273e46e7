"""`use_attention` on every library: the same numbers, this model only, and as it was afterwards."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import tiny_pipelines
import torch
from attending_models import MODELS, Run, llama, noise, unet
from torch import Tensor, nn

import mmpeft
from mmpeft.anatomies.reading import attention_sites

CASES = ("vit", "eva02", "beit", "swin", "bert", "open_clip", "open_clip_attention", "hf_clip", "siglip")
Build = Callable[[str], tuple[nn.Module, Run]]


@pytest.fixture
def build(make_case: Any) -> Build:
    """Return the maker of a model with a function that runs it."""

    def built(name: str) -> tuple[nn.Module, Run]:
        if name in MODELS:
            return MODELS[name]()
        case = make_case("lora", name)
        return case.build(), case.run

    return built


@pytest.fixture(params=[*CASES, *MODELS])
def made(request: pytest.FixtureRequest, build: Build) -> tuple[nn.Module, Run]:
    return build(request.param)


def gradients(model: nn.Module, run: Run) -> dict[str, Tensor]:
    model.requires_grad_(True).zero_grad()
    run(model).sin().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def shape_of(model: nn.Module) -> dict[str, Any]:
    """Return the class of every module, and the identities of what it holds."""
    return {
        path: (type(m), {name: id(value) for name, value in m.__dict__.items() if name not in ("_backward_hooks",)})
        for path, m in model.named_modules()
    }


@pytest.mark.parametrize("backend", ["sdpa", "math"])
def test_the_numbers_stay(made: tuple[nn.Module, Run], backend: Any) -> None:
    model, run = made
    expected, wanted = run(model), gradients(model, run)
    mmpeft.use_attention(model, backend)
    torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)
    found = gradients(model, run)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        room = 1e-5 * max(1.0, float(gradient.abs().max()))
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=room, msg=name)


def test_every_attention_goes_through_the_door(made: tuple[nn.Module, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    """Values of the door's own are what arrives: zero everywhere changes the output."""
    model, run = made
    calls = []

    def door(q: Tensor, k: Tensor, v: Tensor, **how: Any) -> Tensor:
        calls.append(how["backend"])
        return torch.zeros(*torch.broadcast_shapes(q.shape[:2], k.shape[:1] + q.shape[1:2]), q.shape[2], v.shape[-1])

    monkeypatch.setattr("mmpeft.injection.attending.attention", door)
    with torch.no_grad():
        expected = run(model)
        assert not calls
        mmpeft.use_attention(model, "math")
        assert not torch.allclose(run(model), expected, atol=1e-3)
    assert calls == ["math"] * len(attention_sites(model))


def test_auto_puts_everything_back(made: tuple[nn.Module, Run]) -> None:
    model, run = made
    with torch.no_grad():
        expected, before = run(model), shape_of(model)
        mmpeft.use_attention(model, "math")
        assert shape_of(model) != before
        mmpeft.use_attention(model, "auto")
        assert shape_of(model) == before
        assert torch.equal(run(model), expected)


def test_a_context_puts_the_kernel_of_before_back(made: tuple[nn.Module, Run]) -> None:
    model, run = made
    mmpeft.use_attention(model, "math")
    with torch.no_grad():
        expected = run(model)
        with mmpeft.use_attention(model, "flash"):
            run(model)
        assert torch.equal(run(model), expected)


def test_an_unavailable_kernel_is_an_error_when_called(made: tuple[nn.Module, Run]) -> None:
    model, run = made
    mmpeft.use_attention(model, "mem_efficient")
    with pytest.raises(ValueError, match="'mem_efficient' needs a GPU"):
        run(model)


def test_another_model_is_untouched() -> None:
    """Also one that was made of the same configuration object."""
    from transformers import LlamaForCausalLM

    model, run = llama("eager")
    other = LlamaForCausalLM(model.config).eval()
    other.load_state_dict(model.state_dict())
    before = shape_of(other)
    mmpeft.use_attention(model, "mem_efficient")
    with torch.no_grad():
        run(other)
    assert shape_of(other) == before
    assert other.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["vit", "llama_eager", "unet", "open_clip"])
def test_a_copy_has_its_own_kernel(name: str, build: Build) -> None:
    model, run = build(name)
    mmpeft.use_attention(model, "math")
    with torch.no_grad():
        expected = run(model)
        twins = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
        mmpeft.use_attention(model, "mem_efficient")
        for twin in twins:
            assert torch.equal(run(twin), expected)
            mmpeft.use_attention(twin, "auto")
            assert not any("_graft" in module.__dict__ for module in twin.modules())
    with pytest.raises(ValueError, match="needs a GPU"):
        run(model)


@pytest.mark.parametrize("name", ["vit", "llama_eager", "unet", "open_clip", "siglip"])
@pytest.mark.parametrize("order", ["kernel first", "adapter first"])
def test_adapters_stay_beside_it(name: str, order: str, build: Build) -> None:
    model, run = build(name)
    plain = copy.deepcopy(model)
    if order == "kernel first":
        mmpeft.use_attention(model, "math")
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    mmpeft.use_attention(model, "math")
    twin = mmpeft.adapt(plain, mmpeft.LoRA(rank=2))
    with torch.no_grad():
        for own, value in zip(adapters.parameters(), twin.parameters(), strict=True):
            own.normal_(std=0.2)
            value.copy_(own)
        torch.testing.assert_close(run(model), run(plain), rtol=1e-5, atol=1e-5)
        if order == "kernel first":
            adapters.remove()
            mmpeft.use_attention(model, "auto")
        else:
            mmpeft.use_attention(model, "auto")
            torch.testing.assert_close(run(model), run(plain), rtol=0, atol=0)
            adapters.remove()
    assert not any("_graft" in module.__dict__ for module in model.modules())


def test_an_image_prompt_stays_beside_it() -> None:
    model, run = unet()
    adapters = mmpeft.adapt(model, mmpeft.IPAdapter())
    with torch.no_grad(), adapters.given({"main": noise(2, 1024)}):
        expected = run(model)
        with mmpeft.use_attention(model, "math"):
            torch.testing.assert_close(run(model), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "llama", "unet"])
def test_it_compiles(name: str, build: Build) -> None:
    model, run = build(name)
    mmpeft.use_attention(model, "math")
    with torch.no_grad():
        expected = run(model)
        found = run(torch.compile(model, backend="aot_eager", fullgraph=name != "unet"))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    torch._dynamo.reset()


def test_recomputation_in_the_backward_pass_has_the_kernel_too() -> None:
    model, run = llama()
    mmpeft.use_attention(model, "math")
    wanted = gradients(model, run)
    model.train().gradient_checkpointing_enable({"use_reentrant": False})
    for name, gradient in gradients(model, run).items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=1e-5)


def test_a_pipeline_is_set_as_a_whole() -> None:
    pipeline = tiny_pipelines.stable_diffusion()
    mmpeft.use_attention(pipeline, "math")
    assert all(site.host._graft.now().kernel.backend == "math" for part in ("unet", "vae", "text_encoder")
               for site in attention_sites(getattr(pipeline, part)))  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason"), [("swin_v2", "has no attention by a kernel"), ("convnext", "has no attention by a kernel")]
)
def test_a_model_without_a_kernel_is_refused(name: str, reason: str, build: Build) -> None:
    with pytest.raises(ValueError, match=reason):
        mmpeft.use_attention(build(name)[0], "math")


@pytest.mark.parametrize("padded", [False, True])
def test_torch_s_own_encoder_is_told_to_call_its_attention(padded: bool) -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, batch_first=True), 2).eval()
    x, mask = torch.randn(2, 5, 8), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    run = lambda: encoder(x, src_key_padding_mask=mask if padded else None)[~mask]  # noqa: E731
    with torch.no_grad():
        before = run()
        with mmpeft.use_attention(encoder, "math"):
            torch.testing.assert_close(run(), before)
        assert torch.equal(run(), before)


def test_attention_that_can_not_be_reached_is_named() -> None:
    layer = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2, add_bias_kv=True)})
    with pytest.raises(ValueError, match=r"attention\.kernel: nn\.MultiheadAttention with bias_k.*choose auto"):
        mmpeft.use_attention(layer, "math")


def test_a_model_on_another_library_s_kernel_says_what_to_do() -> None:
    model, _ = llama()
    model.config._attn_implementation_internal = "flash_attention_2"
    with pytest.raises(ValueError, match=r"call model\.set_attn_implementation\('sdpa'\) first"):
        mmpeft.use_attention(model, "math")


def test_a_processor_that_attends_by_itself_is_an_error() -> None:
    from diffusers.models.attention_processor import AttnProcessor

    model, run = unet()
    model.set_attn_processor(AttnProcessor())
    mmpeft.use_attention(model, "math")
    with pytest.raises(ValueError, match="Attention did not call torch's attention"):
        run(model)
