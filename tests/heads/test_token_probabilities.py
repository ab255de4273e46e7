"""The scorer against the model's own logits: padding on either side, packing, caps behind the head, two stacks."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_language import llama
from torch import Tensor

import mmpeft
from mmpeft.heads.token_probabilities import TokenScorer


def by_hand(logits: Tensor, ids: Tensor, counted: Tensor) -> Tensor:
    return logits.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0][counted[:, 1:].bool()]


def gemma() -> Any:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 8}
    config = Gemma2Config(vocab_size=88, num_key_value_heads=2, final_logit_softcapping=1.0, sliding_window=4, **size)
    return Gemma2ForCausalLM(config).eval()


def gpt2() -> Any:
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=88, n_embd=32, n_layer=2, n_head=4, n_positions=64)).eval()


@pytest.mark.parametrize(("make", "chunked"), [(llama, True), (gemma, False), (gpt2, True)])
def test_scores_are_those_of_the_models_logits(make: Any, chunked: bool) -> None:
    model = make()
    scorer, ids = TokenScorer(model), torch.randint(3, 88, (3, 9))
    counted = torch.rand(3, 9) < 0.6
    assert scorer.chunked == chunked
    found, right = scorer(ids, counted)
    logits = model(ids).logits
    torch.testing.assert_close(found, by_hand(logits, ids, counted))
    assert torch.equal(right, (logits.argmax(-1)[:, :-1] == ids[:, 1:])[counted[:, 1:]])


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_on_either_side_changes_nothing(side: str) -> None:
    scorer = TokenScorer(llama())
    rows = [torch.randint(3, 88, (1, length)) for length in (4, 7)]
    alone = torch.cat([scorer(row, torch.ones_like(row))[0] for row in rows])
    batch, mask = torch.zeros(2, 7, dtype=torch.long), torch.zeros(2, 7, dtype=torch.long)
    for place, row in enumerate(rows):
        own = slice(7 - row.shape[1], 7) if side == "left" else slice(0, row.shape[1])
        batch[place, own], mask[place, own] = row[0], 1
    first = mask.cumsum(1) == 1
    found, _ = scorer(batch, mask * ~first, attention_mask=mask)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "attention"), [(llama, "sdpa"), (llama, "eager"), (gpt2, "sdpa"), (gpt2, "eager"), (gemma, "eager")]
)
def test_packed_documents_score_as_they_do_alone(make: Any, attention: str) -> None:
    model = make()
    model.set_attn_implementation(attention)
    scorer = TokenScorer(model)
    rows = [torch.randint(3, 88, (1, length)) for length in (4, 7, 2, 6)]
    alone = torch.cat([scorer(row, torch.ones_like(row))[0] for row in rows])
    positions = torch.cat([torch.arange(row.shape[1]) for row in rows])[None]
    found, _ = scorer(torch.cat(rows, 1), positions > 0, position_ids=positions)
    torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_adapters_of_the_output_layer_count() -> None:
    model = llama()
    scorer = TokenScorer(model)
    adapters = mmpeft.adapt(scorer, {"method": "linear_probe"})
    with torch.no_grad():
        for parameter in adapters.parameters():
            parameter.add_(torch.randn_like(parameter))
    ids = torch.randint(3, 88, (2, 6))
    found, _ = scorer(ids, torch.ones_like(ids))
    torch.testing.assert_close(found, by_hand(model(ids).logits, ids, torch.ones_like(ids)))
    with adapters.off():
        assert not torch.allclose(found, scorer(ids, torch.ones_like(ids))[0])
    found.sum().backward()
    assert all(parameter.grad is not None for parameter in adapters.parameters())


def test_an_encoder_decoder_is_scored_on_its_answer() -> None:
    from transformers import T5Config, T5ForConditionalGeneration

    torch.manual_seed(0)
    size = {"d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 4, "d_kv": 8}
    model = T5ForConditionalGeneration(T5Config(vocab_size=88, decoder_start_token_id=0, **size)).eval()  # type: ignore[call-arg]
    ids, answer = torch.randint(3, 88, (2, 6)), torch.randint(3, 88, (2, 5))
    mask = torch.tensor([[1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]])
    labels = answer.masked_fill(torch.tensor([[False] * 5, [False] * 3 + [True] * 2]), -100)
    expected = model(input_ids=ids, attention_mask=mask, labels=labels).loss
    started = torch.cat([torch.zeros(2, 1, dtype=torch.long), answer], 1)
    counted = torch.cat([torch.zeros(2, 1), labels != -100], 1)
    found, _ = TokenScorer(model)(ids, counted, attention_mask=mask, decoder_input_ids=started)
    torch.testing.assert_close(-found.mean(), expected)
