"""What is learned of a conversation: answers with their end, whoever marks them; never the prompt."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_language import MARKED_TEMPLATE, PLAIN_TEMPLATE, byte_tokenizer, conversation, tokenizer

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.encoding import LEARNED, THOUGHT, Encoder
from mmpeft.data.language.formats import read_example
from mmpeft.data.language.rows import BadRowError

BOTH = pytest.mark.parametrize("template", [PLAIN_TEMPLATE, MARKED_TEMPLATE], ids=["differences", "markers"])


def encoder(template: str | None = MARKED_TEMPLATE, name: str = "messages", **options: Any) -> Encoder:
    own = options.pop("tokenizer", {})
    return Encoder(tokenizer(template, **own), LanguageData.model_validate({"name": name, "path": "x", **options}))


def learned(made: Encoder, row: Any, kind: int = LEARNED) -> str:
    found = made.encode(read_example({"messages": row} if isinstance(row, list) else row, made.config))
    return str(made.tokenizer.decode(found.tokens[found.kinds == kind]))


@BOTH
def test_turns_of_the_assistant_with_their_ends(template: str) -> None:
    turns = conversation("what is a cat ?", "red", "a dog ?", "green .")
    assert learned(encoder(template), turns) == "red <|end|> green . <|end|>"
    assert learned(encoder(template, learn="completion"), turns) == "green . <|end|>"
    assert learned(encoder(template, learn="all"), turns).startswith("<s> <|user|> what is")


@BOTH
def test_thoughts_are_a_kind_of_their_own(template: str) -> None:
    turns = conversation("a cat ?", "<think>first step</think> red")
    made = encoder(template)
    assert learned(made, turns, THOUGHT) == "<think> first step </think>"
    assert learned(made, turns) == "red <|end|>"


def test_plain_text_is_ended_and_only_the_completion_learned() -> None:
    made = encoder(None, "prompt_completion")
    assert learned(made, {"prompt": "what is a cat ?", "completion": " red ."}) == "red . </s>"
    assert learned(encoder(None, "text"), {"text": "a cat ."}) == "a cat . </s>"
    assert (
        made.tokenizer.decode(made.encode_prompt(read_example({"prompt": "a", "completion": "b"}, made.config)))
        == "<s> a"
    )


def test_a_pad_token_that_is_the_end_changes_nothing() -> None:
    made = encoder(None, "prompt_completion", tokenizer={"pad_token": "</s>"})
    assert learned(made, {"prompt": "a", "completion": " red"}) == "red </s>"


def test_white_space_that_no_offset_covers_is_learned() -> None:
    """Byte-level tokenizers say of indentation that it is nowhere."""
    own = Encoder(byte_tokenizer(None), LanguageData(name="prompt_completion", path="x"))
    row = {"prompt": "if a:\n", "completion": "    é  b"}
    assert learned(own, row) == "    é  b</s>"


LLAMA = "Hello<|eot_id|>if a:\n    b<|eot_id|>"
CHATML = "Hello<|im_end|>\nif a:\n    b<|im_end|>\n"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("llama3", LLAMA), ("llama3_1", LLAMA), ("llama3_training", LLAMA),
        ("qwen2_5", CHATML), ("qwen3", CHATML), ("qwen3_instruct_2507", CHATML), ("qwen3_training", CHATML),
        ("gemma3", CHATML.replace("<|im_end|>", "<end_of_turn>")),
        ("phi3", CHATML.replace("<|im_end|>", "<|end|>") + "</s>"),
        ("phi3_training", CHATML.replace("<|im_end|>", "<|end|>") + "</s>"),
    ],
)  # fmt: skip
def test_templates_of_the_field(name: str, expected: str) -> None:
    """Some write the last answer in another way than those before it; empty thoughts are not learned."""
    trl = pytest.importorskip("trl")
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}.jinja").read_text()
    turns = conversation("Hi", "Hello", "  code?", "if a:\n    b")
    for learn, said in (("assistant", expected), ("completion", expected[expected.index("if a") :])):
        own = Encoder(byte_tokenizer(template), LanguageData(name="messages", path="x", learn=learn))
        assert learned(own, turns) == said


def test_options_of_a_template() -> None:
    shouting = MARKED_TEMPLATE.replace("message['content']", "(message['content'] + (mood or ''))")
    assert learned(encoder(shouting, template_options={"mood": " !"}), conversation("a", "red")) == "red ! <|end|>"


def test_prompts_end_where_the_answer_begins() -> None:
    made = encoder(system="help")
    example = read_example({"messages": conversation("a cat ?", "red")}, made.config)
    said = made.tokenizer.decode(made.encode_prompt(example))
    assert said == "<s> <|system|> help <|end|> <|user|> a cat ? <|end|> <|assistant|>"
    assert made.reference(example) == "red"
    assert made.tokenizer.convert_ids_to_tokens(made.ends()) == ["</s>", "<|end|>"]


def test_what_is_too_long_is_cut_at_the_end() -> None:
    row = {"prompt": "what is a cat ?", "completion": " red ."}
    assert learned(encoder(None, "prompt_completion", max_length=7), row) == "red"
    with pytest.raises(BadRowError, match=r"first 6 tokens are prompt: raise data\.max_length"):
        learned(encoder(None, "prompt_completion", max_length=6), row)


def test_templates_that_can_not_be_learned_from(tmp_path: Path) -> None:
    turns = conversation("a", "red")
    with pytest.raises(ValueError, match="no chat template, which conversations need"):
        learned(encoder(None), turns)
    (tmp_path / "own.jinja").write_text(MARKED_TEMPLATE)
    assert learned(encoder(None, chat_template=str(tmp_path / "own.jinja")), turns) == "red <|end|>"
    early = MARKED_TEMPLATE.replace("+ '<|end|>' }}{% endgeneration %}", "}}{% endgeneration %}{{ '<|end|>' }}")
    with pytest.raises(ValueError, match=r"would never stop: .* \{% endgeneration %\}"):
        learned(encoder(early), turns)
    forgetful = PLAIN_TEMPLATE.replace("in messages %}", "in messages[-2:] %}")
    with pytest.raises(ValueError, match="can't be found in it: give a template with"):
        learned(encoder(forgetful), conversation("a", "b", "a", "b"))
    strict = MARKED_TEMPLATE.replace(
        "{{ bos_token }}", "{% if messages|length > 2 %}{{ raise_exception('too long') }}{% endif %}"
    )
    with pytest.raises(BadRowError, match="refused by the chat template: too long"):
        learned(encoder(strict), conversation("a", "b", "a", "b"))


def test_a_tokenizer_without_an_end_is_refused() -> None:
    with pytest.raises(ValueError, match="no end-of-text token"):
        encoder(None, "text", tokenizer={"eos_token": None})


def test_turns_behind_the_cut_are_not_looked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    turns = conversation(*["a cat ?", "red"] * 300)
    short, whole, renders = encoder(PLAIN_TEMPLATE, max_length=60), encoder(PLAIN_TEMPLATE, max_length=10_000), []
    render = short._render
    monkeypatch.setattr(short, "_render", lambda *args, **how: renders.append(args) or render(*args, **how))
    cut = short.encode(read_example({"messages": turns}, short.config))
    full = whole.encode(read_example({"messages": turns[:40]}, whole.config))
    assert len(renders) < 40  # two for each answer in the first 60 tokens, of 300 answers, and that of all
    assert cut.tokens.tolist() == full.tokens[:60].tolist()
    assert cut.kinds.tolist() == full.kinds[:60].tolist()
