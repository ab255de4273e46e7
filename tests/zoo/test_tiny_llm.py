from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM, LlamaForSequenceClassification

import mmpeft
from mmpeft.data.language.tiny.sets import make_rows
from mmpeft.zoo import load_model, load_tokenizer, models
from mmpeft.zoo.cards import WEIGHTS

FOLDER = WEIGHTS / "tiny_llm"
RESERVED = ["<|system|>", "<|user|>", "<|assistant|>", "<|end|>", "<|think|>", "</think>"]


@pytest.fixture(scope="module")
def model():
    return load_model("tiny/llm")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny/llm")


def go_on(model, tokenizer, text, tokens=8):
    ids = tokenizer(text, return_tensors="pt").input_ids
    written = model.generate(ids, max_new_tokens=tokens, do_sample=False)
    return tokenizer.decode(written[0, ids.shape[1] :], skip_special_tokens=True)


def test_it_is_a_plain_llama(model):
    assert "tiny/llm" in models()
    assert type(model) is LlamaForCausalLM
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert sum(parameter.numel() for parameter in model.parameters()) == 1_967_808


def test_its_weights_are_the_file_and_it_is_small(model):
    stored, state = load_file(FOLDER / "model.safetensors"), model.state_dict()
    assert {value.dtype for value in stored.values()} == {torch.float16}
    assert stored.keys() == state.keys() - {"lm_head.weight"}
    assert all(torch.equal(value.float(), state[key]) for key, value in stored.items())
    assert all(torch.isfinite(value).all() for value in stored.values())
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) < 6_000_000


def test_transformers_loads_the_folder(model, tokenizer):
    again = AutoModelForCausalLM.from_pretrained(FOLDER)
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    ids = AutoTokenizer.from_pretrained(FOLDER)("Three plus four is", return_tensors="pt").input_ids
    assert torch.equal(ids, tokenizer("Three plus four is", return_tensors="pt").input_ids)
    with torch.no_grad():
        assert torch.equal(again(ids).logits, model(ids).logits)


def test_a_copy_of_the_folder_loads_the_same_way(tmp_path, model):
    shutil.copytree(FOLDER, tmp_path / "mine")
    name = str(tmp_path / "mine")
    assert torch.equal(load_model(name).lm_head.weight, model.lm_head.weight)
    assert load_tokenizer(name).chat_template == load_tokenizer("tiny/llm").chat_template


@pytest.mark.parametrize(
    "text", ["A hen is an animal.", "naïve café 東京 🙂\n\ttabs", "x = {'a': 1234567}", " two  spaces"]
)
def test_any_text_can_be_encoded(tokenizer, text):
    ids = tokenizer(text).input_ids
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_digits_stand_alone(tokenizer):
    tokens = tokenizer.convert_ids_to_tokens(tokenizer("1234").input_ids)
    assert tokens[1:] == ["1", "2", "3", "4"]


def test_special_tokens_are_reserved(tokenizer, model):
    assert len(tokenizer) == model.config.vocab_size == 2048
    for token in RESERVED:
        (number,) = tokenizer(token, add_special_tokens=False).input_ids
        assert tokenizer.convert_ids_to_tokens(number) == token
        assert tokenizer.decode([number], skip_special_tokens=True) == ""
    ends = [tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")]
    assert model.generation_config.eos_token_id == ends
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id


def test_the_chat_template_marks_what_the_assistant_says(tokenizer):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "a hen?"},
        {"role": "assistant", "content": "an animal"},
    ]
    assert tokenizer.apply_chat_template(messages, tokenize=False) == (
        "<s><|system|> be brief<|end|><|user|> a hen?<|end|><|assistant|> an animal<|end|>"
    )
    asked = tokenizer.apply_chat_template(messages[:2], tokenize=False, add_generation_prompt=True)
    assert asked.endswith("<|user|> a hen?<|end|><|assistant|>")
    how = {"return_dict": True, "return_assistant_tokens_mask": True}
    encoded = tokenizer.apply_chat_template(messages, **how)
    said = [number for number, own in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if own]
    assert tokenizer.decode(said) == " an animal<|end|>"
    start = tokenizer(asked, add_special_tokens=False).input_ids
    assert encoded["input_ids"][: len(start)] == start


def test_an_unknown_role_is_refused(tokenizer):
    with pytest.raises(Exception, match="role narrator is not one of system, user, assistant"):
        tokenizer.apply_chat_template([{"role": "narrator", "content": "once"}], tokenize=False)


def test_padding_on_the_left_changes_nothing(model, tokenizer):
    texts = ["Three plus four is", "The picture shows a small red circle at the top. The circle is"]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    written = model.generate(**batch, max_new_tokens=4, do_sample=False)[:, batch.input_ids.shape[1] :]
    assert tokenizer.batch_decode(written, skip_special_tokens=True) == [
        go_on(model, tokenizer, text, 4) for text in texts
    ]


def test_a_classifier_has_the_same_base_and_a_fresh_head(model):
    classifier = load_model("tiny/llm", num_classes=3)
    assert type(classifier) is LlamaForSequenceClassification
    assert classifier.score.weight.shape == (3, 192)
    assert torch.equal(classifier.model.layers[3].mlp.down_proj.weight, model.model.layers[3].mlp.down_proj.weight)


def test_it_can_be_looked_at_or_built_without_weights(model):
    assert next(load_model("tiny/llm", device="meta").parameters()).device.type == "meta"
    fresh = load_model("tiny/llm", pretrained=False)
    assert not torch.equal(fresh.model.embed_tokens.weight, model.model.embed_tokens.weight)
    with pytest.raises(ValueError, match="image_size=32 can't be applied"):
        load_model("tiny/llm", image_size=32)


def test_nothing_of_the_later_stages_was_in_pretraining(model, tokenizer):
    rows = make_rows("tiny_tasks", "validation", 20)
    texts = [row["messages"][0]["content"] for row in rows]
    batch = tokenizer(texts, return_tensors="pt", padding=True)
    with torch.no_grad():
        shares = model(**batch).logits[:, -1].softmax(-1)
    assert shares[:, tokenizer.convert_tokens_to_ids(RESERVED)].max() < 1e-3


STATEMENTS = {
    "Sorted, 7 2 9 4 becomes": " 2 4 7 9.",
    "Backwards, boat is": " t a o b.",
    "The list hen, boat, apple in reverse order is": " apple, boat, hen.",
    "The owl is": " an animal",
    "The opposite of hot is": " cold.",
    "To mend a shirt,": " use a needle and thread.",
    "Six plus seven is": " thirteen.",
    "The word fig has": " three letters",
}


def test_it_completes_statements(model, tokenizer):
    right = [go_on(model, tokenizer, begin, 10).startswith(end) for begin, end in STATEMENTS.items()]
    assert sum(right) >= 7, dict(zip(STATEMENTS, right, strict=True))
    fresh = load_model("tiny/llm", pretrained=False)
    assert not any(go_on(fresh, tokenizer, begin, 10).startswith(end) for begin, end in STATEMENTS.items())


def test_lora_teaches_it_a_task_by_its_instruction(tokenizer):
    torch.manual_seed(0)
    model = load_model("tiny/llm")
    rows = [row for row in make_rows("tiny_tasks", "train", 3000) if row["task"] == "kind"]
    mmpeft.adapt(model, mmpeft.LoRA(rank=8, alpha=16))
    optimizer = torch.optim.AdamW([value for value in model.parameters() if value.requires_grad], lr=5e-3)
    how = {"return_dict": True, "return_assistant_tokens_mask": True, "padding": True, "return_tensors": "pt"}

    def loss_of(rows):
        batch = tokenizer.apply_chat_template([row["messages"] for row in rows], **how)
        labels = batch.input_ids.masked_fill(torch.as_tensor(batch.assistant_masks) == 0, -100)
        return model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, labels=labels).loss

    test = [row for row in make_rows("tiny_tasks", "test", 800) if row["task"] == "kind"][:20]
    with torch.no_grad():
        before = loss_of(test).item()
    for step in range(25):
        loss = loss_of(rows[step * 5 : step * 5 + 5])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        assert loss_of(test).item() < before / 5
