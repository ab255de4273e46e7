"""Regular expressions of a stranger: the matches are those of ``re``, and hostile ones end."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest

import mmpeft
from mmpeft.formats.hf_peft.path_patterns import Budget, FirstMatch, PathPattern

USED = [
    r".*\.(q_proj|v_proj)",
    r"^(?!.*vision).*(?:q_proj|v_proj)$",
    r"(?:.*?(?:vision|image|visual|patch|language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|fc1|fc2|o_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\.(?:self_attn|mlp)\.(?:k_proj))",
    r"model\.layers\.([0-9]|1[0-5])\..*proj",
    r"(?i).*Q_PROJ",
    r"(?i:ATTN)?.*",
    r"(?<=a)b|(?<!a)c",
    r"[^.]*\.\w+\.\d+",
    r"(a|ab)(c|bcd)(d*)",
    r"((a.)*b)*",
    r"[a-c]{2}[^\W_]*",
    r"x{,3}(|a)*",
    r"^$|.+\Z",
    r"((?=a)|b)*.?",
    r"(a?){5}b",
]
PATHS = [
    "model.layers.0.self_attn.q_proj", "model.vision_tower.layers.11.self_attn.v_proj", "h.0.attn.c_attn", "lm_head",
    "", "language_model.model.layers.3.mlp.down_proj", "abcd", "ab", "aab.ab", "c", "b.ab", "aaa",
    "aaaaab", "ABC.q_proj",
]  # fmt: skip
HOSTILE = r"(([^!]|[a-z0-9._])+)+!"


def expression(source: random.Random, depth: int) -> str:
    if depth == 0:
        return source.choice(["a", "b", ".", "[ab]", "[^a]", r"\.", r"\w", "c", "^", "$", r"\b"])
    inner = [expression(source, depth - 1) for _ in range(2)]
    forms = ["{0}{1}", "({0}|{1})", "(?:{0})*", "(?:{0})+?", "(?:{0}){{1,3}}", "(?={0}){1}", "(?!{0}){1}", "{0}.*{1}"]
    return source.choice(forms).format(*inner)


def same(pattern: str, paths: list[str]) -> None:
    ours = PathPattern(pattern, Budget())
    for path in paths:
        assert ours.match(path) == bool(re.match(pattern, path)), (pattern, path)
        assert ours.fullmatch(path) == bool(re.fullmatch(pattern, path)), (pattern, path)


@pytest.mark.parametrize("pattern", USED)
def test_expressions_of_configurations_match_as_in_re(pattern: str) -> None:
    same(pattern, PATHS)


def test_random_expressions_match_as_in_re() -> None:
    source = random.Random(0)
    for _ in range(500):
        texts = ["".join(source.choice("abc.") for _ in range(source.randrange(9))) for _ in range(6)]
        pattern = expression(source, source.randrange(4))
        same(pattern, texts)


def test_the_first_key_of_a_pattern_counts() -> None:
    keys = ["q_proj", "layers.0.q_proj", r"layers\.1\..*", "v.proj"]
    first = FirstMatch(keys, Budget())
    for path in ("layers.0.q_proj", "layers.1.v_proj", "layers.1.q_proj", "v_proj", "layers.2.k_proj", "xq_proj"):
        theirs = next((key for key in keys if re.match(rf"(.*\.)?({key})$", path)), None)
        assert first.key(path) == theirs


def test_what_would_take_years_ends() -> None:
    assert not PathPattern(HOSTILE, Budget()).fullmatch("model.layers.0.self_attn.q_proj" * 4)
    nested = PathPattern(r"((((((a?.)*b)*.)*c)*.)*d)*", budget := Budget())
    budget.left = 10_000
    with pytest.raises(ValueError, match="its regular expressions take more than"):
        for number in range(1000):
            nested.fullmatch("abcd.." * 40 + str(number))


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(a", "no regular expression"),
        (r"(a)\1", "groupref"),
        ("(?>a)", "atomic_group"),
        ("(" * 60 + ")" * 60, "groups in one another"),
        ("(" * 5000, "no regular expression"),
        ("a" * 200_000, "200,000 characters"),
    ],
)
def test_what_can_not_be_matched_is_refused(pattern: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PathPattern(pattern, Budget())


@pytest.mark.parametrize(
    "change",
    [
        {"target_modules": HOSTILE},
        {"rank_pattern": {HOSTILE: 4}, "r": 3},
        {"modules_to_save": [HOSTILE], "r": 3},
        {"layers_to_transform": [0], "layers_pattern": HOSTILE},
        {"exclude_modules": "(a"},
        {"rank_pattern": {"a": 0}},
        {"r": 10**40},
        {"alpha_pattern": {"a": "x"}},
        {"target_modules": {"a": 1}},
        {"peft_type": ["LORA"]},
    ],
)
def test_a_directory_with_such_a_configuration_is_one_error(
    change: Any, vit: Any, adapted: Any, tmp_path: Path
) -> None:
    adapted(mmpeft.LoRA(rank=2))[1].save(tmp_path / "a")
    (tmp_path / "a/mmpeft.json").unlink()
    path = tmp_path / "a/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    model = vit()
    with pytest.raises(ValueError, match=re.escape(str(tmp_path / "a"))):
        mmpeft.load(model, tmp_path / "a")
    assert not hasattr(model, "mmpeft")
