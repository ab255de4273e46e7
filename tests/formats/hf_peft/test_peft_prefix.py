"""Prefix tuning both ways between mmpeft and the installed HF peft: the same logits, whatever positions are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor

import mmpeft
from mmpeft.formats import convert, export

SIZES: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "Llama": {"num_key_value_heads": 2},
    "Mistral": {"num_key_value_heads": 2},
    "Qwen3": {"num_key_value_heads": 2, "head_dim": 8},
    "Phi": {"partial_rotary_factor": 0.5},
    "GPTNeoX": {"rotary_pct": 0.25},
    "GPT2": {},
}
IDS = torch.tensor([[3, 14, 15, 9], [26, 5, 35, 8]])


def build(kind: str) -> Any:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES | KINDS[kind])
    return transformers.AutoModelForCausalLM.from_config(config).eval()


def theirs(model: Any, projection: bool = False) -> Any:
    config = peft.PrefixTuningConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=3, prefix_projection=projection, encoder_hidden_size=32
    )
    wrapped = peft.get_peft_model(model, config)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.prompt_encoder.parameters():
            parameter.normal_()
    return wrapped.eval()


def logits(model: Any, mask: Tensor | None = None) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(input_ids=IDS, attention_mask=torch.ones_like(IDS) if mask is None else mask).logits
    return found


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("through", ["load", "import"])
def test_what_peft_wrote_gives_its_logits(kind: str, through: str, tmp_path: Path) -> None:
    wrapped = theirs(build(kind))
    expected = logits(wrapped)
    wrapped.save_pretrained(tmp_path / "theirs")
    directory = tmp_path / "theirs"
    if through == "import":
        directory = tmp_path / "ours"
        convert(tmp_path / "theirs", directory, "peft")
    model = build(kind)
    frozen = logits(model)
    mmpeft.load(model, directory)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(expected, frozen, atol=1e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_peft_gives_the_logits_of_what_we_wrote(kind: str, tmp_path: Path) -> None:
    model = build(kind)
    adapters = mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=3, hidden=8, shifted=kind == "GPT2"))
    expected = logits(model)
    adapters.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "theirs", "peft", base=build(kind))
    wrapped = peft.PeftModel.from_pretrained(build(kind), tmp_path / "theirs").eval()
    torch.testing.assert_close(logits(wrapped), expected, rtol=1e-5, atol=1e-5)


def test_a_network_of_peft_has_made_what_is_read(tmp_path: Path) -> None:
    wrapped = theirs(build("GPT2"), projection=True)
    expected = logits(wrapped)
    wrapped.save_pretrained(tmp_path)
    model = build("GPT2")
    mmpeft.load(model, tmp_path)
    torch.testing.assert_close(logits(model), expected, rtol=1e-5, atol=1e-5)


def test_generation_is_that_of_peft(tmp_path: Path) -> None:
    wrapped = theirs(build("Llama"))
    wrapped.save_pretrained(tmp_path)
    model = build("Llama")
    mmpeft.load(model, tmp_path)
    how = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(IDS)}
    assert torch.equal(model.generate(IDS, **how), wrapped.generate(input_ids=IDS, **how))


def test_another_model_is_named(tmp_path: Path) -> None:
    theirs(build("Llama")).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="token_dim: 16, and the model has 32") as told:
        mmpeft.load(build("GPT2"), tmp_path)
    assert "prompt_embeddings: shape (3, 64), the model needs (3, 128)" in str(told.value)


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("GPT2", {}, "shifted=True where positions are learned"),
        ("Llama", {"layers": "first:1"}, "one of each block of one tower: 1 for blocks"),
    ],
)
def test_what_peft_can_not_hold_is_said(kind: str, options: dict[str, Any], reason: str, tmp_path: Path) -> None:
    model = build(kind)
    mmpeft.adapt(model, mmpeft.PrefixTuning(tokens=3, hidden=None, **options)).save(tmp_path / "ours")
    with pytest.raises(ValueError, match=reason):
        export(tmp_path / "ours", tmp_path / "theirs", "peft", base=build(kind))
    with pytest.raises(ValueError, match="base: where a prefix stands"):
        export(tmp_path / "ours", tmp_path / "theirs", "peft")
