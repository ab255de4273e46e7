"""The loss that a language model makes of its labels, when the logits of all positions are put off."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import mmpeft
from mmpeft.kernels import deferred_logits, token_scores
from mmpeft.kernels.deferred_logits import DeferredLogits

SIZE = {
    "vocab_size": 500, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2,
    "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
T5 = {"vocab_size": 500, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 1, "num_heads": 2}
MODELS: dict[str, dict[str, Any]] = {
    "Llama": {**SIZE},
    "Cohere": {**SIZE, "logit_scale": 0.25},  # tied, and scaled
    "Granite": {**SIZE, "logits_scaling": 3.0},
    "Gemma2": {**SIZE, "head_dim": 16, "final_logit_softcapping": 2.0},
    "T5": {**T5, "decoder_start_token_id": 0},
    "Bert": {**SIZE},
}
TOLERANCE: dict[str, float] = {"rtol": 1e-5, "atol": 1e-7}
"""Sums of 500 products in fp32, in another order."""


@pytest.fixture(autouse=True)
def _no_logits_are_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred_logits, "SMALL_BYTES", 0)
    monkeypatch.setattr(token_scores, "CHUNK_BYTES", 4 * 500 * 5)  # five tokens at a time


def build(name: str, dtype: torch.dtype = torch.float32) -> Any:
    import transformers

    kind = {"T5": "ForConditionalGeneration", "Bert": "ForMaskedLM"}.get(name, "ForCausalLM")
    torch.manual_seed(0)
    model = getattr(transformers, name + kind)(getattr(transformers, f"{name}Config")(**MODELS[name]))
    return model.to(dtype).train()


def batch() -> dict[str, Tensor]:
    ids = torch.randint(3, 500, (3, 9), generator=torch.Generator().manual_seed(1))
    return {"input_ids": ids, "labels": ids.masked_fill(ids % 4 == 0, -100)}


def step(model: Any, trained: list[Any], **options: Any) -> list[Tensor]:
    torch.manual_seed(2)
    loss = model(**batch(), **options).loss
    return [loss.detach(), *torch.autograd.grad(loss, trained, allow_unused=True)]


def never(*_: Any) -> Any:
    raise AssertionError("the logits were computed")


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("head", ["frozen", "trained"])
def test_loss_and_gradients(monkeypatch: pytest.MonkeyPatch, name: str, head: str) -> None:
    model = build(name)
    adapters = mmpeft.adapt(model, mmpeft.LoRA(rank=2, targets="all"), name="a")
    trained = [*adapters.parameters()]
    if head == "trained":
        trained.append(model.get_output_embeddings().weight.requires_grad_())
    counts: list[dict[str, Any]] = [{}] if name in ("T5", "Bert") else [{}, {"num_items_in_batch": torch.tensor(40)}]
    expected = [step(model, trained, **options) for options in counts]
    monkeypatch.setattr(DeferredLogits, "computed", never)
    with mmpeft.use_memory(model, "lean"):
        for options, values in zip(counts, expected, strict=True):
            torch.testing.assert_close(step(model, trained, **options), values, **TOLERANCE)
            assert type(model(**batch(), **options).logits) is DeferredLogits


@pytest.mark.parametrize("autocast", [False, True])
def test_half_precision(autocast: bool) -> None:
    model = build("Llama", torch.float32 if autocast else torch.bfloat16)
    trained = [*mmpeft.adapt(model, mmpeft.LoRA(rank=2)).parameters()]
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        expected = step(model, trained)
        with mmpeft.use_memory(model, "lean"):
            torch.testing.assert_close(
                step(model, trained), expected, rtol=2e-2, atol=2e-3
            )  # bf16 has 8 bits, gradients are up to 0.1


def test_whoever_looks_gets_the_logits() -> None:
    model = build("Gemma2")
    trained = [*mmpeft.adapt(model, mmpeft.LoRA(rank=2)).parameters()]
    expected = model(**batch()).logits
    slopes = torch.autograd.grad(expected.sin().sum(), trained)
    with mmpeft.use_memory(model, "lean"):
        logits = model(**batch()).logits
    with torch.no_grad():
        assert torch.equal(logits[:, :-1].argmax(-1), expected[:, :-1].argmax(-1))
    assert torch.equal(logits, expected)
    assert (logits.shape, logits.dtype, len(logits)) == (expected.shape, expected.dtype, len(expected))
    torch.testing.assert_close(torch.autograd.grad(logits.sin().sum(), trained), slopes)
    torch.testing.assert_close(logits[..., :7].sum(), expected[..., :7].sum())
    assert torch.equal(torch.cat([logits, logits]), torch.cat([expected, expected]))


def test_other_cross_entropies() -> None:
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    labels, rows = torch.tensor([0, 8, 3, -100, 2, 2]), torch.tensor([True, False, True, True, False, True])
    for options in ({"reduction": "none"}, {"reduction": "sum"}, {"label_smoothing": 0.1}, {"weight": torch.rand(9)}):
        expected = F.cross_entropy(hidden @ weight.T / 2, labels, **options)
        loss = F.cross_entropy(DeferredLogits(hidden, (weight, None)) / 2, labels, **options)
        torch.testing.assert_close(loss, expected)
    put_off = DeferredLogits(hidden, (weight, torch.ones(9)))
    expected = F.cross_entropy((hidden @ weight.T + 1)[rows], labels[rows])
    torch.testing.assert_close(F.cross_entropy(put_off[rows], labels[rows]), expected)
    with pytest.raises(RuntimeError, match="out of bounds"):
        F.cross_entropy(DeferredLogits(hidden, (weight, None)), labels.clamp(min=-3))


def test_what_would_be_something_else_is_refused() -> None:
    hidden, weight = torch.randn(6, 4, requires_grad=True), torch.randn(9, 4)
    logits = DeferredLogits(hidden, (weight, None))
    logits *= 2
    torch.testing.assert_close(logits, 2 * hidden @ weight.T)
    logits = DeferredLogits(hidden, (weight, None))
    assert logits[:3].shape == (3, 9)
    with pytest.raises(ValueError, match="mul_ writes into logits"):
        logits.mul_(2)

    class Twice(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return 2 * x

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> Tensor:
            return 2 * grads[0]

    with pytest.raises(ValueError, match="handed to something that isn't a function of torch"):
        Twice.apply(DeferredLogits(hidden, (weight, None))).sum().backward()


def test_an_output_layer_that_others_read_stays_as_it_is() -> None:
    model = build("Llama")
    mmpeft.adapt(model, mmpeft.LinearProbe())
    with mmpeft.use_memory(model, "lean"):
        assert type(model(**batch()).logits) is Tensor
    model = build("Llama")
    mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    model.lm_head.register_forward_hook(lambda *_: None)
    with mmpeft.use_memory(model, "lean"):
        assert type(model(**batch()).logits) is Tensor
