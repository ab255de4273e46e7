"""Windows over contexts: every answer is found again, and rows that can't be right are one error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tiny_language import bert, save_model, tokenizer, write_rows

from mmpeft.data.language.reading import load_reading, windows
from mmpeft.data.language.task_config import ReadingData
from mmpeft.zoo.language_models import load_text_tokenizer

CONTEXT = "one two three four five six red green blue cat dog sun moon ."
QUESTION = "what is red ?"


@pytest.fixture(scope="module", params=["cls", "none"])
def texts(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    if request.param == "none":
        return tokenizer()
    return load_text_tokenizer(save_model(tmp_path_factory.mktemp("bert"), bert()))


def data(**options: Any) -> ReadingData:
    return ReadingData(**{"path": "rows.jsonl", "max_length": 12, "stride": 2, "validation": 1, "test": 1, **options})


@pytest.mark.parametrize("answer", ["one", "five six", "moon .", "red green blue"])
def test_windows_show_the_whole_context_and_the_answer(texts: Any, answer: str) -> None:
    start = CONTEXT.index(answer)
    found = windows(texts, QUESTION, CONTEXT, [(start, start + len(answer))], data())
    assert len(found) > 2
    seen, right = set(), 0
    for item in found:
        assert len(item["input_ids"]) == len(item["allowed"]) == len(item["offsets"]) <= 12
        seen |= {at for at, own in zip(item["offsets"], item["allowed"], strict=True) if own}
        assert item["allowed"][item["nowhere"]] == 1
        if item["start"] != item["nowhere"]:
            right += 1
            assert CONTEXT[item["offsets"][item["start"]][0] : item["offsets"][item["end"]][1]] == answer
        else:
            assert item["end"] == item["nowhere"]
    assert right >= 1
    assert {CONTEXT[a:b] for a, b in seen} - {""} == set(CONTEXT.split())


def test_nowhere_is_the_first_token_or_in_decoders_an_end_behind_all(texts: Any) -> None:
    for item in windows(texts, QUESTION, CONTEXT, [], data()):
        place = item["nowhere"]
        assert place == (0 if texts.cls_token_id is not None else len(item["input_ids"]) - 1)
        assert item["input_ids"][place] == (texts.cls_token_id or texts.eos_token_id)


def test_bad_rows_are_one_error_that_names_each(tmp_path: Path) -> None:
    def row(text: Any, start: Any, context: str = CONTEXT, question: str = QUESTION) -> dict[str, Any]:
        return {"context": context, "question": question, "answers": {"text": text, "answer_start": start}}

    rows = [
        *(row(["two"], [4], question=f"what is {thing} ?") for thing in ("one", "two", "three", "four")),
        row(["two"], [5]),
        row(["bank"], [4]),
        row([], []),
        row(["two"], []),
        row(["two"], [4], context=" "),
        row(["two"], [4], question=QUESTION * 3),
        {"context": CONTEXT, "question": QUESTION, "answers": ["two"]},
    ]
    path = write_rows(tmp_path / "rows.jsonl", rows)
    with pytest.raises(ValueError, match="7 of 11 rows can't be learned from") as caught:
        load_reading(data(path=path), tokenizer())
    for said in (
        "rows.jsonl:5 has the answer 'two' at 5, but its context has it at 4",
        "rows.jsonl:6 has the answer 'bank' at 4, but its context does not contain it",
        "rows.jsonl:7 has no answers: remove it, or set data.unanswerable: true",
        "rows.jsonl:8 has 1 answers and 0 places",
        "rows.jsonl:9 has an empty context",
    ):
        assert said in str(caught.value)
    found = load_reading(data(path=path, on_bad_row="skip"), tokenizer())
    assert "7 of 11" in found.notes[0]
    found = load_reading(data(path=path, on_bad_row="skip", unanswerable=True), tokenizer())
    assert "6 of 11" in found.notes[0]
    with pytest.raises(ValueError, match=r"data.stride: 12 must be less than data.max_length: 12"):
        load_reading(data(path=path, stride=12), tokenizer())


def test_generated_questions_load() -> None:
    found = load_reading(ReadingData(path="tiny_spans", generated=(20, 5, 7)), tokenizer())
    assert [len(found.train), len(found.val), len(found.test)] == [20, 5, 7]
    assert all(found.train[place]["start"] != found.train[place]["nowhere"] for place in range(20))
