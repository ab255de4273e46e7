"""Routed batches in transformers' ``generate``, which makes several rows of each."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_language
import torch

import mmpeft

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16]])
NAMES = ("a", "b", None)
OPTIONS: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 4}
HOWS: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3, "num_return_sequences": 3},
    "beams without a cache": {"num_beams": 2, "num_return_sequences": 1, "use_cache": False},
}
METHODS = [mmpeft.LoRA(rank=2), mmpeft.PrefixTuning(tokens=2, hidden=None), mmpeft.PromptTuning(tokens=2)]


def adapted(model: str, method: mmpeft.Method) -> tuple[Any, mmpeft.Adapters]:
    torch.manual_seed(0)
    made = (tiny_language.llama() if model == "llama" else tiny_language.writer(model)).eval()
    for name in ("a", "b"):
        mmpeft.adapt(made, method, name)
    adapters = mmpeft.adapters(made)
    with torch.no_grad():
        for parameter in [*adapters.parameters("a"), *adapters.parameters("b")]:
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return made, adapters


@torch.no_grad()
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "method", [mmpeft.LoRA(rank=2), mmpeft.PrefixTuning(tokens=2, hidden=None)], ids=["lora", "prefix"]
)
@pytest.mark.parametrize("family", ["llama", "t5", "bart"])
def test_rows_of_a_sample_run_with_its_adapter(family: str, method: mmpeft.Method, how: str) -> None:
    model, adapters = adapted(family, method)
    names = ("a", "b", "a") if method.name == "prompt_tuning" else NAMES  # as many tokens for everyone
    with adapters.route(names):
        found = model.generate(IDS, **OPTIONS, **HOWS[how])
    rows = found.unflatten(0, (3, -1))
    for ids, name, own in zip(IDS, names, rows, strict=True):
        with adapters.using(*[name] if name else []):
            expected = model.generate(ids[None], **OPTIONS, **HOWS[how])
        assert torch.equal(own, expected), name


@torch.no_grad()
def test_sampled_sequences_run_with_their_adapter() -> None:
    """A step's scores of each of the returned sequences are those of the sample's adapter alone."""
    model, adapters = adapted("llama", mmpeft.LoRA(rank=2))
    options = OPTIONS | {"do_sample": True, "num_return_sequences": 2, "max_new_tokens": 1}
    with adapters.route(NAMES):
        found = model.generate(IDS, **options, output_logits=True, return_dict_in_generate=True).logits[0]
    with adapters.route(NAMES):
        expected = model(IDS).logits[:, -1].repeat_interleave(2, 0)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # fp32, in products of other shapes


@torch.no_grad()
def test_other_rows_than_names_are_refused() -> None:
    model, adapters = adapted("llama", mmpeft.LoRA(rank=2))
    with adapters.route(NAMES), pytest.raises(ValueError, match="3 names for a batch of 6"):
        model(torch.cat([IDS, IDS]))
