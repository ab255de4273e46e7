"""New heads on language models: what is below them comes from the checkpoint, in every class of transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_language import bert, llama, writer

from mmpeft import load_model

GIVEN: tuple[dict[str, Any], ...] = ({"num_classes": 3}, {"task": "question_answering"})


@pytest.mark.parametrize("given", GIVEN, ids=str)
@pytest.mark.parametrize("make", [llama, bert, writer], ids=["llama", "bert", "t5"])
def test_all_below_the_head_is_the_checkpoints(tmp_path: Path, make: Any, given: dict[str, Any]) -> None:
    source = make()
    source.save_pretrained(tmp_path)
    model: Any = load_model(str(tmp_path), **given)
    assert type(model).__name__.endswith("ForQuestionAnswering" if "task" in given else "ForSequenceClassification")
    stored = {id_: value for id_, value in source.base_model.state_dict().items() if "lm_head" not in id_}
    own = model.state_dict()
    for name, value in stored.items():
        found = [own[key] for key in own if key == name or key.endswith(f".{name}")]
        assert found or "pooler" in name, name
        assert all(torch.equal(value, one) for one in found)
    ids = torch.randint(3, 80, (2, 7))
    ids[:, -1] = 2
    output = model(ids)
    assert (output.start_logits.shape == ids.shape) if "task" in given else (output.logits.shape == (2, 3))


def test_a_part_that_would_be_random_is_an_error(tmp_path: Path) -> None:
    bert("BertForMaskedLM").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no weights for bert.pooler.dense.bias.* random each time"):
        load_model(str(tmp_path), num_classes=2)
    load_model(str(tmp_path), task="question_answering")


def test_models_without_such_a_head_are_errors(tmp_path: Path) -> None:
    from transformers import Gemma2Config

    Gemma2Config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no model for gemma2 that points at answers"):
        load_model(str(tmp_path), task="question_answering", device="meta")
    with pytest.raises(ValueError, match="task='question_answering' can't be applied"):
        load_model("tiny/vit", task="question_answering")
