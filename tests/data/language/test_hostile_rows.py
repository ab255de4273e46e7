"""Files of texts that anybody may have made: a row that can't be used is named, and can be left out."""

from __future__ import annotations

import json

import pytest

from mmpeft.data.language import rows as rows_module
from mmpeft.data.language.config import LanguageData
from mmpeft.data.language.labelled import read_labelled
from mmpeft.data.language.rows import read_rows
from mmpeft.data.language.task_config import LabelledTexts
from mmpeft.data.language.text_sets import load_texts
from mmpeft.zoo import load_tokenizer

GOOD = [{"prompt": f"p{number}", "completion": "yes"} for number in range(6)]


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("tiny/llm")


def load(path, tokenizer, name="prompt_completion", **values):
    return load_texts(LanguageData(name=name, path=str(path), test=1, validation=1, **values), tokenizer)


def lines(path, *extra, good=GOOD):
    content = [json.dumps(row).encode() for row in good]
    path.write_bytes(b"\n".join([*content, *(row if isinstance(row, bytes) else row.encode() for row in extra)]))
    return path


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"prompt":' + "[" * 1_000_000, "is no JSON"),
        ("[" * 900 + "]" * 900, "is list, not an object with columns"),
        ('{"prompt": ' + '{"content": [' * 400 + "]}" * 400 + "}", "is nested too deep|no column|turn"),
        (b'{"prompt": "a", "completion": "\xff"}', "is no JSON"),
        (b"\0\0\0", "is no JSON"),
        ('{"prompt": "a", "completion": "\\ud800"}', r"has '\\ud800', which is half a character"),
        ('{"prompt": "a", "completion": ' + "9" * 5000 + "}", "is no JSON"),
        ('{"prompt": "a"}', "has no column 'completion'"),
        ('{"prompt": "a", "completion": {"role": "assistant", "content": 5}}', "has int as what assistant says"),
        (
            '{"prompt": "a", "completion": {"role": "assistant", "content": [{"type": "text"}]}}',
            "part of a turn",
        ),
        ('{"prompt": "a", "completion": {"role": "' + "x" * 100_000 + '", "content": "a"}}', "has the unknown role"),
        ('{"prompt": "a", "completion": true}', "has bool as its completion"),
        ("7", "is int, not an object with columns"),
    ],
)
def test_a_bad_line_is_named_and_can_be_left_out(tmp_path, tokenizer, line, message):
    path = lines(tmp_path / "x.jsonl", line)
    with pytest.raises(ValueError, match=rf"1 of 7 rows can't be learned from: x.jsonl:7 .*({message})") as caught:
        load(path, tokenizer)
    assert len(str(caught.value)) < 3000
    assert len(load(path, tokenizer, on_bad_row="skip").train) == 4


def test_a_line_that_is_too_long_is_not_read(tmp_path, tokenizer, monkeypatch):
    monkeypatch.setattr(rows_module, "MOST_BYTES", 1000)
    path = lines(
        tmp_path / "x.jsonl", " " * 5000, json.dumps(GOOD[0] | {"completion": "a" * 10_000}), json.dumps(GOOD[1])
    )
    found = read_rows(str(path), LanguageData(name="text", path=str(path)))
    assert len(found) == 8
    with pytest.raises(ValueError, match="has more than 1,000 bytes: cut or remove the line"):
        found[6]
    assert found[7] == GOOD[1]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"prompt,completion\na,\xff\n", "byte 0xff at 20 is no UTF-8"),
        ("x.csv", b'prompt,completion\na,"' + b"b" * 200_000 + b'"\n', "line 1: is no CSV: field larger than"),
        ("x.csv", b"prompt,completion,prompt\na,b,c\n", "a column of the same name comes twice: prompt"),
        ("x.json", b"[" * 1_000_000, "this is no JSON"),
        ("x.json", b"\xff\xfe[\0]\0", "is no UTF-8"),
        ("x.json", b'{"a": 1}', "holds dict, not a list of rows"),
        ("x.parquet", b"PAR1 no", "can't be read as parquet"),
    ],
)
def test_a_file_that_is_none_is_named(tmp_path, tokenizer, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{message}"):
        load(tmp_path / name, tokenizer)


def test_rows_of_a_table_with_too_many_cells(tmp_path, tokenizer):
    rows = "\n".join(f"p{n},yes" for n in range(6))
    (tmp_path / "x.csv").write_text(f"\ufeffprompt,completion\n{rows}\na,b,c,d\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"1 of 7 rows .* x.csv:7 has 2 cells more than there are columns"):
        load(tmp_path / "x.csv", tokenizer)


def test_a_document_that_is_no_utf_8_is_named_and_can_be_left_out(tmp_path, tokenizer):
    for number in range(6):
        (tmp_path / f"{number}.txt").write_text(f"the story {number}")
    (tmp_path / "bad.txt").write_bytes(b"a\xffb")
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(ValueError, match=r"1 of 7 rows .* bad.txt:1 can't be read: byte 0xff at 1 is no UTF-8"):
        load(tmp_path, tokenizer, name="text")
    assert len(load(tmp_path, tokenizer, name="text", on_bad_row="skip").train) == 4


def preference(chosen, rejected, **others):
    return json.dumps({"chosen": chosen, "rejected": rejected, **others})


TURN = {"role": "assistant", "content": "a"}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (preference("a", "b", prompt="p", margin=float("inf")), "has the margin inf"),
        ('{"prompt": "p", "chosen": "a", "rejected": "b", "margin": 1e400}', "has the margin inf"),
        (preference([TURN], "b"), "has a chosen text and rejected turns|no prompt"),
        (preference([TURN], [TURN, TURN]), "begin with nothing in common or don't differ"),
        (preference("a b\n", "a b\nc"), "has an answer that the other one begins with"),
    ],
)
def test_pairs_that_can_not_be_compared(tmp_path, tokenizer, row, message):
    good = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b"} for n in range(6)]
    config = LanguageData(name="preference", path=str(lines(tmp_path / "x.jsonl", row, good=good)))
    with pytest.raises(ValueError, match=rf"1 of 7 rows can't be learned from: x.jsonl:7 .*({message})"):
        load_texts(config, tokenizer, "pairs")


@pytest.mark.parametrize("label", ["Infinity", "1e400", "NaN", "[1]", "{}", '"' + "9" * 5000 + '"'])
def test_labels_that_are_no_class_and_no_number(tmp_path, label):
    good = [{"text": f"t{n}", "label": n % 2} for n in range(20)]
    path = lines(tmp_path / "x.jsonl", f'{{"text": "t", "label": {label}}}', good=good)
    with pytest.raises(ValueError, match=r"1 of 21 rows .* x.jsonl:21 has the label") as caught:
        read_labelled(LabelledTexts(path=str(path), classes=("a", "b")))
    assert len(str(caught.value)) < 2000
    with pytest.raises(ValueError, match=r"x.jsonl:21 has the label"):
        read_labelled(LabelledTexts(path=str(path), labels="number"))
