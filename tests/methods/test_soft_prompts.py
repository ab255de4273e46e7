"""Prompt tuning and P-tuning on language models: the formula, padding, caches, generation, labels."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny_language
import torch
from torch import Tensor, nn
from transformers import DynamicCache

import mmpeft

TOKENS = 3
IDS = torch.tensor([[1, 20, 21, 22, 23, 24], [1, 30, 31, 32, 33, 34]])
METHODS = [mmpeft.PromptTuning(tokens=TOKENS), mmpeft.PTuning(tokens=TOKENS, hidden=8)]
each_method = pytest.mark.parametrize("method", METHODS, ids=lambda method: method.name)


def adapted(method: mmpeft.Method = METHODS[0], **options: Any) -> tuple[Any, mmpeft.Adapters]:
    model = tiny_language.llama(**options)
    return model, mmpeft.adapt(model, method)


def vectors(adapters: mmpeft.Adapters) -> Tensor:
    (edit,) = adapters._edits("main")
    return edit.prompt()


@each_method
def test_it_is_the_model_on_vectors_and_words(method: mmpeft.Method) -> None:
    model, adapters = adapted(method)
    plain = tiny_language.llama()
    words = torch.cat([vectors(adapters).expand(2, -1, -1), plain.get_input_embeddings()(IDS)], 1)
    expected = plain(inputs_embeds=words, output_hidden_states=True)
    found = model(IDS, labels=IDS, output_hidden_states=True)
    torch.testing.assert_close(found.logits, expected.logits[:, TOKENS:])
    for own, other in zip(found.hidden_states, expected.hidden_states, strict=True):
        torch.testing.assert_close(own, other[:, TOKENS:])
    predicted = expected.logits[:, TOKENS:-1].flatten(0, 1)
    torch.testing.assert_close(found.loss, nn.functional.cross_entropy(predicted, IDS[:, 1:].flatten()))
    found.loss.backward()
    adapters.check_gradients()


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
@each_method
def test_padding_changes_nothing(method: mmpeft.Method, side: str) -> None:
    model, _ = adapted(method)
    expected = model(IDS[:1, :4]).logits
    pads = torch.zeros(1, 2, dtype=torch.long)
    parts = [pads, IDS[:1, :4]] if side == "left" else [IDS[:1, :4], pads]
    ids, mask = torch.cat(parts, 1), torch.cat([(part != 0).long() for part in parts], 1)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    found = model(ids, attention_mask=mask, position_ids=positions).logits
    torch.testing.assert_close(found[mask.bool()], expected[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}], ids=str)
@each_method
def test_it_writes_what_it_says_step_by_step(method: mmpeft.Method, how: dict[str, Any]) -> None:
    """A batch padded on the left gets what each of its texts gets by itself, without any cache."""
    model, _ = adapted(method)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    ids = torch.cat([IDS, torch.tensor([[0, 0, 0, 1, 40, 41]])])
    written = model.generate(ids, attention_mask=(ids != 0).long(), **options, **how)
    alone = [ids[:1], ids[1:2], ids[2:, 3:]]
    beams = {"num_beams": how.get("num_beams", 1), "use_cache": False}
    for text, found in zip(alone, written, strict=True):
        expected = model.generate(text, attention_mask=torch.ones_like(text), **options, **beams)
        assert torch.equal(found[-5:], expected[0, -5:])


@torch.no_grad()
def test_a_cache_holds_the_vectors_once() -> None:
    model, _ = adapted()
    first = model(IDS[:, :4], use_cache=True)
    assert first.past_key_values.layers[0].get_seq_length() == 4 + TOKENS
    assert first.past_key_values.get_seq_length() == 4  # who holds the cache counts words
    second = model(IDS[:, 4:], past_key_values=first.past_key_values, attention_mask=torch.ones_like(IDS))
    torch.testing.assert_close(torch.cat([first.logits, second.logits], 1), model(IDS).logits, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("adapters", [("main",), ("main", "other")], ids=["one prompt", "two prompts"])
def test_a_cache_is_kept_over_turns(adapters: tuple[str, ...]) -> None:
    """A chat goes on from the cache of the turn before, and from a copy of it, as it would without any."""
    model = tiny_language.llama()
    for name in adapters:
        mmpeft.adapt(model, mmpeft.PromptTuning(tokens=TOKENS), name)
    mmpeft.adapters(model).activate(*adapters)
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 4}
    cache = DynamicCache(config=model.config)
    first = model.generate(IDS[:1], past_key_values=cache, **options)
    twin, turn = copy.deepcopy(cache), torch.cat([first, torch.tensor([[30, 31, 32]])], 1)
    expected = model.generate(turn, use_cache=False, **options)
    for kept in (cache, twin):
        read = kept.get_seq_length()
        assert read == first.shape[1] - 1
        assert torch.equal(model.generate(turn, past_key_values=kept, **options), expected)
        assert kept.get_seq_length() == expected.shape[1] - 1


@torch.no_grad()
def test_words_that_were_guessed_leave_the_cache_again() -> None:
    model, _ = adapted()
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 8}
    text = torch.tensor([[20, 21, 20, 21, 20, 21]])
    assisted = model.generate(text, prompt_lookup_num_tokens=2, **options)
    assert torch.equal(assisted, model.generate(text, use_cache=False, **options))


@torch.no_grad()
def test_a_cache_without_the_prompt_is_refused() -> None:
    model, adapters = adapted()
    with adapters.off():
        cache = model(IDS, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="past_key_values: this cache was filled without the prompt"):
        model(IDS, past_key_values=cache)


def test_a_static_cache_is_refused() -> None:
    model, _ = adapted()
    with pytest.raises(ValueError, match="a static cache has no room"):
        model.generate(IDS, max_new_tokens=2, cache_implementation="static", disable_compile=True)


@torch.no_grad()
def test_how_a_prompt_starts() -> None:
    rows = tiny_language.llama().get_input_embeddings().weight
    _, text = adapted(mmpeft.PromptTuning(tokens=5, init="text", text="one two", ids=(20, 21)))
    assert torch.equal(vectors(text), rows[[20, 21, 20, 21, 20]])
    _, drawn = adapted(mmpeft.PromptTuning(tokens=5, init="vocabulary"))
    assert all((rows == vector).all(1).any() for vector in vectors(drawn))
    _, random = adapted(mmpeft.PromptTuning(tokens=50))
    assert 0.3 < vectors(random).abs().max() <= 0.5


def test_a_model_with_its_tokenizer_looks_up_the_text() -> None:
    from mmpeft.heads.token_probabilities import TokenScorer
    from mmpeft.injection.pipelines import Vocabulary

    tokenizer = tiny_language.tokenizer()
    scorer = TokenScorer(tiny_language.llama())
    scorer.words = Vocabulary(tokenizer).words
    adapters = mmpeft.adapt(scorer, mmpeft.PromptTuning(tokens=2, init="text", text="red cat"))
    expected = scorer.backbone.get_input_embeddings().weight[tokenizer.convert_tokens_to_ids(["red", "cat"])]
    assert torch.equal(vectors(adapters), expected)


def test_bad_starts_are_named() -> None:
    with pytest.raises(ValueError, match="init: 'text' with text: None"):
        mmpeft.PromptTuning(init="text")
    with pytest.raises(ValueError, match=r"text: 'red' needs a tokenizer, and LlamaForCausalLM"):
        adapted(mmpeft.PromptTuning(init="text", text="red"))
    with pytest.raises(ValueError, match=r"ids: \[999\] beyond"):
        adapted(mmpeft.PromptTuning(init="text", ids=(3, 999)))


def test_an_encoder_decoder_reads_the_vectors_in_its_decoder(make_case: Any) -> None:
    model = make_case("prompt_tuning", "t5").build()
    adapters = mmpeft.adapt(model, mmpeft.PromptTuning(tokens=TOKENS))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    ids, written = torch.arange(10).view(2, 5) + 3, torch.arange(6).view(2, 3) + 3
    found = model(input_ids=ids, attention_mask=mask, decoder_input_ids=written).logits
    words = torch.cat([vectors(adapters).expand(2, -1, -1), model.get_input_embeddings()(ids)], 1)
    longer = torch.cat([mask.new_ones(2, TOKENS), mask], 1)
    with adapters.off():
        expected = model(inputs_embeds=words, attention_mask=longer, decoder_input_ids=written).logits
        assert not torch.allclose(found, model(input_ids=ids, attention_mask=mask, decoder_input_ids=written).logits)
    torch.testing.assert_close(found, expected)
    options = {"max_new_tokens": 4, "do_sample": False, "attention_mask": mask, "decoder_start_token_id": 0}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, **options, use_cache=False))


@pytest.mark.parametrize("vocabulary", [32_000, 128_256])
@pytest.mark.parametrize(("name", "count"), [("prompt_tuning", 81_920), ("p_tuning", 1_151_232)])
def test_counts_on_llama(name: str, count: int, vocabulary: int) -> None:
    """Of Llama-2-7B and Llama-3-8B, whose words are equally wide; the depth doesn't matter."""
    from transformers import LlamaConfig, LlamaForCausalLM

    size = {"hidden_size": 4096, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": vocabulary}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**size))
    assert mmpeft.adapt(model, name).report().trainable == count
