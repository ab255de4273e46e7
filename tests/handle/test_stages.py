"""An adapter on a base with others merged in: it knows them, and no other base takes it without a word."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file

import mmpeft
from mmpeft.cli import main
from mmpeft.formats import export
from mmpeft.formats.stages import mark_merged


def vit() -> Any:
    torch.manual_seed(0)
    size = {"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.create_model("vit_tiny_patch16_224", **size).eval()


def trained(model: Any, path: Path, seed: int) -> None:
    """Save an adapter that does something, and leave the model as it was."""
    handle = mmpeft.adapt(model, mmpeft.LoRA(rank=2), name="main")
    torch.manual_seed(seed)
    for parameter in handle.parameters():
        parameter.data = torch.randn_like(parameter)
    handle.save(path)
    handle.remove()


def output(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(torch.linspace(-1, 1, 768).reshape(1, 3, 16, 16))
    return result


@pytest.fixture
def stages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> torch.Tensor:
    """Two adapters in the current directory, ``second`` made on a base with ``first`` merged in; what both give."""
    monkeypatch.chdir(tmp_path)
    model = vit()
    trained(model, Path("first"), 1)
    mmpeft.load(model, "first").merge_and_unload()
    trained(model, Path("second"), 2)
    mmpeft.load(model, "second")
    return output(model)


def test_the_plain_base_is_refused_and_left_alone(stages: torch.Tensor) -> None:
    model = vit()
    before = output(model)
    with pytest.raises(
        ValueError, match=r"second was made on a base with first \(\w{8}\) merged in, and this model has none"
    ):
        mmpeft.load(model, "second")
    assert not hasattr(model, "mmpeft")
    assert torch.equal(output(model), before)


def test_with_the_stage_it_gives_what_it_gave(stages: torch.Tensor) -> None:
    model = vit()
    mmpeft.load(model, "first").merge_and_unload()
    mmpeft.load(copy.deepcopy(model), "second")
    mmpeft.load(model, "second")
    assert torch.equal(output(model), stages)


def test_a_stage_with_another_weight_or_of_another_training_is_another_one(stages: torch.Tensor) -> None:
    half = vit()
    handle = mmpeft.load(half, "first")
    handle.activate("main", weights=[0.5])
    handle.merge_and_unload()
    with pytest.raises(ValueError, match=r"this model has first \(\w{8}, weight 0.5\)"):
        mmpeft.load(half, "second")
    other = vit()
    trained(other, Path("other"), 3)
    mmpeft.load(other, "other").merge_and_unload()
    with pytest.raises(ValueError, match="this model has other"):
        mmpeft.load(other, "second")


def test_a_model_that_was_saved_merged_says_so(stages: torch.Tensor) -> None:
    merged = vit()
    mmpeft.load(merged, "first").merge_and_unload()
    model = vit()
    model.load_state_dict(merged.state_dict())
    mark_merged(model, "first")
    mmpeft.load(model, "second")
    assert torch.equal(output(model), stages)


def test_other_formats_refuse_what_they_cannot_say(stages: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="second was made on a base with first"):
        export("second", "for_peft", "peft")
    assert not Path("for_peft").exists()
    export("first", "for_peft", "peft")


def test_three_stages_follow_one_another(stages: torch.Tensor) -> None:
    model = vit()
    mmpeft.load(model, "first").merge_and_unload()
    mmpeft.load(model, "second").merge_and_unload()
    trained(model, Path("third"), 4)
    assert [stage["path"] for stage in json.loads(Path("third/mmpeft.json").read_text())["stages"]] == [
        "first",
        "second",
    ]
    mmpeft.load(model, "third")


def test_the_command_line_merges_the_stages_first(
    stages: torch.Tensor, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mmpeft, "load_model", lambda source: vit())
    assert main(["merge", "a/model", "second", "merged.safetensors"]) == 0
    assert "merged first, for the adapter was made on it: first" in capsys.readouterr().out
    model = vit()
    model.load_state_dict(load_file("merged.safetensors"))
    assert torch.allclose(output(model), stages, atol=1e-5)  # rounding of merged weights in fp32
    trained(vit(), Path("first"), 5)
    assert main(["merge", "a/model", "second", "again.safetensors"]) == 2
    assert "this adapter is not there now" in capsys.readouterr().err
    assert not Path("again.safetensors").exists()


@pytest.mark.parametrize("saved", [True, False])
def test_one_that_is_merged_straight_after_training_is_a_stage(tmp_path: Path, saved: bool) -> None:
    """Saved before, it can be merged again from there; never saved, only its own base takes what was made on it."""
    model = vit()
    handle = mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter)
    if saved:
        handle.save(tmp_path / "first")
    handle.merge_and_unload()
    trained(model, tmp_path / "second", 2)
    plain = vit()
    said = "first" if saved else r"main \(not saved\)"
    with pytest.raises(ValueError, match=rf"second was made on a base with .*{said} \(\w{{8}}\) merged in"):
        mmpeft.load(plain, tmp_path / "second")
    if saved:
        mmpeft.load(plain, tmp_path / "first").merge_and_unload()
        mmpeft.load(plain, tmp_path / "second")
    mmpeft.load(model, tmp_path / "second")
    if saved:
        torch.testing.assert_close(output(plain), output(model), rtol=0, atol=0)


def test_one_that_was_trained_on_since_it_was_saved_is_not_what_its_directory_holds(tmp_path: Path) -> None:
    model = vit()
    handle = mmpeft.adapt(model, mmpeft.LoRA(rank=2))
    handle.save(tmp_path / "first")
    for parameter in handle.parameters():
        torch.nn.init.normal_(parameter)
    handle.merge_and_unload()
    trained(model, tmp_path / "second", 2)
    other = vit()
    mmpeft.load(other, tmp_path / "first").merge_and_unload()
    with pytest.raises(ValueError, match=r"made on a base with main \(not saved\)"):
        mmpeft.load(other, tmp_path / "second")
