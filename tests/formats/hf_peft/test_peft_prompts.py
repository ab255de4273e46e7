"""Prompts both ways between mmpeft and the installed HF peft, on a tiny Llama: equal logits of the words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny_language
import torch

import mmpeft
from mmpeft.formats import convert, export
from mmpeft.handle.loading import load_peft

TOKENS = 3
IDS = torch.tensor([[1, 20, 21, 22, 23], [0, 0, 1, 30, 31]])
MASK = (IDS != 0).long()
OURS = {
    "prompt": mmpeft.PromptTuning(tokens=TOKENS),
    "mlp": mmpeft.PTuning(tokens=TOKENS, hidden=8),
    "lstm": mmpeft.PTuning(tokens=TOKENS, hidden=8, encoder="lstm"),
}
THEIRS = {
    "prompt": peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS),
    "mlp": peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, encoder_hidden_size=8),
    "lstm": peft.PromptEncoderConfig(
        task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, encoder_hidden_size=8,
        encoder_reparameterization_type="LSTM",
    ),
}  # fmt: skip
each = pytest.mark.parametrize("kind", OURS)


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """The words' own; peft returns the prompt's too, in front."""
    found: torch.Tensor = model(input_ids=IDS, attention_mask=MASK).logits[:, -IDS.shape[1] :]
    return found[MASK.bool()]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def ours(kind: str, shaken: Any) -> tuple[Any, mmpeft.Adapters]:
    model = tiny_language.llama()
    adapters = mmpeft.adapt(model, OURS[kind])
    shaken(adapters.parameters())
    return model, adapters


def theirs(kind: str, shaken: Any) -> Any:
    model = peft.get_peft_model(tiny_language.llama(), THEIRS[kind]).eval()
    shaken([parameter for parameter in model.parameters() if parameter.requires_grad])
    return model


@each
def test_peft_loads_what_we_save_and_we_too(kind: str, shaken: Any, tmp_path: Path) -> None:
    model, adapters = ours(kind, shaken)
    expected = logits(model)
    assert (expected - logits(tiny_language.llama())).abs().max() > 1e-3
    adapters.save(tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "peft", "peft")
    for directory in ("ours", "peft"):
        close(logits(peft.PeftModel.from_pretrained(tiny_language.llama(), tmp_path / directory).eval()), expected)
    again = tiny_language.llama()
    mmpeft.load(again, tmp_path / "ours")
    close(logits(again), expected)


@each
def test_we_load_what_peft_saves_and_it_takes_it_back(kind: str, shaken: Any, tmp_path: Path) -> None:
    peer = theirs(kind, shaken)
    expected = logits(peer)
    peer.save_pretrained(tmp_path / "theirs")
    model = tiny_language.llama()
    load_peft(model, tmp_path / "theirs")
    close(logits(model), expected)
    convert(tmp_path / "theirs", tmp_path / "back", "peft")
    again = tiny_language.llama()
    mmpeft.load(again, tmp_path / "back")
    close(logits(again), expected)
    close(logits(peft.PeftModel.from_pretrained(tiny_language.llama(), tmp_path / "back").eval()), expected)


@pytest.mark.parametrize("kind", ["mlp", "lstm"])
def test_an_encoder_is_as_big_as_that_of_peft(kind: str, shaken: Any) -> None:
    _, adapters = ours(kind, shaken)
    assert adapters.report().trainable == theirs(kind, shaken).get_nb_trainable_parameters()[0]


def test_a_prompt_writes_the_same_text_in_peft(shaken: Any, tmp_path: Path) -> None:
    model, adapters = ours("prompt", shaken)
    adapters.save(tmp_path / "ours")
    peer = peft.PeftModel.from_pretrained(tiny_language.llama(), tmp_path / "ours").eval()
    options = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    given = {"input_ids": IDS[:1], "attention_mask": MASK[:1]}
    assert torch.equal(model.generate(**given, **options), peer.generate(**given, **options))


def test_a_prompt_for_a_wider_model_is_refused(shaken: Any, tmp_path: Path) -> None:
    _, adapters = ours("prompt", shaken)
    adapters.save(tmp_path / "ours")
    with pytest.raises(ValueError, match=r"prompt_embeddings"):
        mmpeft.load(tiny_language.llama(hidden_size=64), tmp_path / "ours")


def test_a_prompt_beside_a_lora_stays_ours(shaken: Any, tmp_path: Path) -> None:
    model = tiny_language.llama()
    adapters = mmpeft.adapt(model, [OURS["mlp"], mmpeft.LoRA()])
    shaken(adapters.parameters())
    adapters.save(tmp_path / "ours")
    assert json.loads((tmp_path / "ours" / "mmpeft.json").read_text())["layout"] == "native"
    again = tiny_language.llama()
    mmpeft.load(again, tmp_path / "ours")
    close(logits(again), logits(model))
