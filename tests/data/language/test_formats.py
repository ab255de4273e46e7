"""The field's formats become examples, or one says what is wrong with a row and what to do."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_language import conversation, write_rows

from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.formats import Example, ask, read_example
from mmpeft.data.language.rows import BadRowError

USER, RED, BLUE = ({"role": role, "content": text} for role, text in
                   (("user", "what is a cat ?"), ("assistant", "red"), ("assistant", "blue")))  # fmt: skip
HELP = {"role": "system", "content": "help"}


def read(name: str, row: dict[str, Any], **options: Any) -> Example:
    return read_example(row, LanguageData.model_validate({"name": name, "path": "x.jsonl", **options}))


@pytest.mark.parametrize(
    ("name", "row", "expected"),
    [
        ("text", {"text": "a cat"}, Example("", "a cat")),
        ("messages", {"messages": [USER, RED]}, Example((USER,), (RED,))),
        ("messages", {"messages": [USER, RED, USER, BLUE]}, Example((USER, RED, USER), (BLUE,))),
        (
            "messages",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "what is a cat ?"}]}, RED]},
            Example((USER,), (RED,)),
        ),
        (
            "sharegpt",
            {"conversations": [{"from": "human", "value": "what is a cat ?"}, {"from": "gpt", "value": "red"}]},
            Example((USER,), (RED,)),
        ),
        ("prompt_completion", {"prompt": "what is", "completion": " red"}, Example("what is", " red")),
        ("prompt_completion", {"prompt": [USER], "completion": [RED]}, Example((USER,), (RED,))),
        ("alpaca", {"instruction": "what is a cat ?", "output": "red"}, Example((USER,), (RED,))),
        (
            "alpaca",
            {"instruction": "what is", "input": "a cat ?", "output": "red", "system": "help",
             "history": [["what is a cat ?", "blue"]]},
            Example((HELP, USER, BLUE, USER | {"content": "what is\na cat ?"}), (RED,)),
        ),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": 2}, Example("q", "a", "b", 2.0)),
        (
            "preference",
            {"prompt": "what is a cat ?", "chosen": [RED], "rejected": [BLUE]},
            Example((USER,), (RED,), (BLUE,)),
        ),
        ("preference", {"chosen": [USER, RED], "rejected": [USER, BLUE]}, Example((USER,), (RED,), (BLUE,))),
        ("preference", {"chosen": [USER, RED], "rejected": "blue"}, Example((USER,), (RED,), (BLUE,))),
        ("preference", {"chosen": "what is: red", "rejected": "what is: blue"}, Example("what is:", " red", " blue")),
        ("unpaired", {"prompt": "q", "completion": "a", "label": False}, Example("q", "a", label=False)),
        ("unpaired", {"prompt": "q", "completion": "a", "label": "1"}, Example("q", "a", label=True)),
    ],
    ids=str,
)  # fmt: skip
def test_formats(name: str, row: dict[str, Any], expected: Example) -> None:
    assert read(name, row) == expected


def test_options() -> None:
    assert read("prompt_completion", {"q": "a", "a": "b"}, columns={"prompt": "q", "completion": "a"}).prompt == "a"
    turns = [{"role": "person", "content": "x"}, {"role": "bot", "content": "y"}]
    found = read("messages", {"messages": turns}, roles={"person": "user", "bot": "assistant"}, system="be kind")
    assert [turn["role"] for turn in (*found.prompt, *found.answer)] == ["system", "user", "assistant"]
    alpaca = read("alpaca", {"instruction": "add", "input": "1 2", "output": "3"}, template="alpaca")
    assert str(alpaca.prompt).endswith("### Instruction:\nadd\n\n### Input:\n1 2\n\n### Response:\n")
    assert "paired with an input" in str(alpaca.prompt)
    thought = read("prompt_completion", {"prompt": "q", "completion": "3", "reasoning": "1 and 2"})
    assert thought.answer == "<think>\n1 and 2\n</think>\n\n3"
    row = {"prompt": "q", "completion": "a"}
    assert read("prompt_completion", row, template="chat").prompt == ({"role": "user", "content": "q"},)


@pytest.mark.parametrize(
    ("name", "row", "message"),
    [
        ("messages", {"messages": [USER]}, "no turn of the assistant"),
        ("messages", {"messages": [USER, RED | {"content": " "}]}, "empty turn of the assistant"),
        (
            "messages",
            {"messages": [USER, RED | {"role": "asistant"}]},
            "role 'asistant' .did you mean 'assistant'",
        ),
        ("messages", {"messages": []}, "in place of a list of turns"),
        ("messages", {"messages": ["hello"]}, "an object with role and content"),
        ("messages", {"messages": [USER | {"content": [{"type": "image"}]}, RED]}, "a part of a turn that is no text"),
        ("messages", {"message": [USER, RED]}, "no column 'messages' .did you mean 'message'.*data.columns.messages"),
        ("prompt_completion", {"prompt": "q", "completion": "  "}, "empty completion"),
        ("prompt_completion", {"prompt": "q", "completion": None}, "empty completion"),
        ("prompt_completion", {"prompt": [USER], "completion": [USER]}, "ends with the user"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}, "same chosen and rejected"),
        ("preference", {"chosen": "one", "rejected": "two"}, "begin with nothing in common"),
        ("preference", {"prompt": "q", "chosen": "a", "rejected": "b", "margin": "much"}, "margin 'much'"),
        ("unpaired", {"prompt": "q", "completion": "a", "label": 7}, "label 7: true"),
        ("text", {"text": ["a"]}, "has list as its text"),
    ],
)
def test_bad_rows(name: str, row: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRowError, match=message):
        read(name, row)


def test_a_question_is_worded_as_the_data_are(tmp_path: Path) -> None:
    path = write_rows(
        tmp_path / "rows.jsonl", [{"prompt": conversation("a"), "completion": conversation("b", roles=("assistant",))}]
    )
    found = ask("hi", LanguageData(name="prompt_completion", path=path), "ho")
    assert found == Example(({"role": "user", "content": "hi"},), ({"role": "assistant", "content": "ho"},))
    path = write_rows(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}])
    assert ask("hi", LanguageData(name="prompt_completion", path=path), "ho") == Example("hi", "ho")
    config = LanguageData(name="messages", path="x", system="be kind")
    assert ask("hi", config).prompt == ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"})
    assert ask("hi", LanguageData(name="text", path="x")).prompt == "hi"
