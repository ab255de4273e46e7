"""The exported class embeddings serve the same logits as the tuned classifier, without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mmpeft
from mmpeft.formats import export
from mmpeft.formats.serving.class_embeddings import read_class_embeddings, save_class_embeddings
from mmpeft.heads.class_embeddings import embeddings_of

TUNED = {
    "nothing": None,
    "words": {"method": "coop", "tokens": 3},
    "both towers": {"method": "maple", "tokens": 2, "layers": "first:2"},
    "text weights": {"method": "lora", "towers": "text"},
    "image features": {"method": "clip_adapter"},
    "the embeddings themselves": {"method": "linear_probe"},
}


@pytest.mark.parametrize("name", TUNED)
@torch.no_grad()
def test_serving_is_the_classifier(name: str, make_case: Any, tmp_path: Path) -> None:
    case = make_case("lora", "zero_shot")
    model = case.build()
    frozen = model(case.batch())
    if TUNED[name] is not None:
        for parameter in mmpeft.adapt(model, TUNED[name]).parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    embeddings, notes = embeddings_of(model)
    save_class_embeddings(embeddings, tmp_path / "new/classes.safetensors")
    read = read_class_embeddings(tmp_path / "new/classes.safetensors")
    assert read.classes == model.classes
    torch.testing.assert_close(read.weight.norm(dim=1), torch.ones(3))
    served = read.logits(model.joint.image(case.batch()))
    torch.testing.assert_close(served, model(case.batch()), atol=1e-4, rtol=1e-5)
    assert (name == "nothing") == torch.allclose(served, frozen, atol=1e-2)
    assert bool(notes) == (name in ("both towers", "image features"))


def test_the_file_needs_nothing_of_ours(make_case: Any, tmp_path: Path) -> None:
    case = make_case("lora", "zero_shot")
    model = case.build()
    save_class_embeddings(embeddings_of(model)[0], tmp_path / "classes.safetensors")
    with safe_open(tmp_path / "classes.safetensors", "pt") as file:
        says = file.metadata()
    weight = load_file(tmp_path / "classes.safetensors")["class_embeddings"]
    features = torch.nn.functional.normalize(model.backbone.encode_image(case.batch()), dim=-1)
    torch.testing.assert_close(float(says["scale"]) * features @ weight.T, model(case.batch()), atol=1e-4, rtol=1e-5)
    assert json.loads(says["classes"]) == ["disc", "ring", "star"]


@pytest.mark.parametrize(
    ("method", "message"), [("tip_adapter", "adds to the logits"), ("cocoop", "other ones for each image")]
)
def test_what_class_embeddings_can_not_say(method: str, message: str, make_case: Any) -> None:
    case = make_case(method, "zero_shot")
    model = case.build()
    case.adapt(model)
    with pytest.raises(ValueError, match=message):
        embeddings_of(model)


def test_other_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    save_file({"class_embeddings": torch.ones(2, 3)}, path)
    with pytest.raises(ValueError, match=r"it says format None, not 'mmpeft\.class_embeddings'"):
        read_class_embeddings(path)
    says = {"format": "mmpeft.class_embeddings", "classes": '["a"]', "scale": "100.0"}
    save_file({"class_embeddings": torch.ones(2, 3)}, path, metadata=says)
    with pytest.raises(ValueError, match="2 embeddings of 1 classes"):
        read_class_embeddings(path)
    for says, problem in (
        ({"scale": "1"}, "classes: Field required"),
        ({"classes": "[" * 10**5, "scale": "1"}, "classes: Invalid JSON"),
        ({"classes": "[1, 2]", "scale": "1"}, r"classes\.0: should be a valid string"),
        ({"classes": '["a", "b"]', "scale": "nan"}, "scale: should be a finite number"),
    ):
        save_file({"class_embeddings": torch.ones(2, 3)}, path, metadata={"format": "mmpeft.class_embeddings", **says})
        with pytest.raises(ValueError, match=rf"x\.safetensors(.|\n)*{problem}"):
            read_class_embeddings(path)
    with pytest.raises(ValueError, match="class embeddings come from a whole classifier"):
        export(tmp_path, tmp_path / "y", "class_embeddings")
