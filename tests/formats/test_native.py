"""mmpeft's own directory: bit-identical after a round trip, and a model untouched by what can't be loaded."""

from __future__ import annotations

import copy
import json

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import mmpeft
from mmpeft import IA3, AdaptFormer, LinearProbe, LoRA
from mmpeft.formats import manifest
from mmpeft.injection import planning


def rewrite(directory, change):
    path = directory / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)


def snapshot(model):
    classes = {name: type(module) for name, module in model.named_modules()}
    flags = {name: (p.requires_grad, p.detach().clone()) for name, p in model.named_parameters()}
    return classes, flags, mmpeft.adapters(model).active


def assert_untouched(model, before):
    classes, flags, active = snapshot(model)
    assert (classes, list(flags), active) == (before[0], list(before[1]), before[2])
    for name, (trainable, value) in before[1].items():
        assert flags[name][0] == trainable
        assert torch.equal(flags[name][1], value)


IN_A_VIT = [
    name
    for name, method in mmpeft.methods().items()
    if "vision" not in method.facts.lacks and not method.facts.tested_by
]
"""The matrix saves and loads the others, on models that they have a site in."""


@pytest.mark.parametrize("name", IN_A_VIT)
def test_every_method_comes_back_bit_identical(name, adapted, vit, images, tmp_path):
    model, handle = adapted(name, "flowers")
    with torch.no_grad():
        expected = model.eval()(images)
    assert not torch.equal(expected, vit()(images))
    assert handle.save(tmp_path / "a") == tmp_path / "a"
    fresh = vit()
    loaded = mmpeft.load(fresh, str(tmp_path / "a"))
    assert loaded.names == ["flowers"]
    assert loaded.methods() == [method.kept() for method in handle.methods()]
    assert not loaded.parameters()
    assert torch.equal(fresh(images), expected)
    for key, value in handle.kept().items():
        assert torch.equal(loaded.state_dict()[key], value)


def test_half_precision_is_kept_and_training_gets_fp32(vit, images, tmp_path):
    model = vit()
    handle = mmpeft.adapt(model, LoRA(), dtype=torch.bfloat16)
    handle.save(tmp_path / "a")
    kept = mmpeft.load(vit(), tmp_path / "a")
    assert {value.dtype for value in kept.state_dict().values()} == {torch.bfloat16}
    trained = mmpeft.load(vit(), tmp_path / "a", trainable=True)
    assert {parameter.dtype for parameter in trained.parameters()} == {torch.float32}
    assert len(trained.parameters()) == 12


def test_a_pipeline_keeps_its_labels(vit, images, tmp_path):
    towers = {"image": vit(), "other": vit(depth=2)}
    handle = mmpeft.adapt(towers, [LoRA(rank=2), LinearProbe()], "both")
    with torch.no_grad():
        for parameter in handle.parameters():
            parameter.normal_()
    handle.save(tmp_path / "a")
    fresh = {"image": vit(), "other": vit(depth=2)}
    mmpeft.load(fresh, tmp_path / "a")
    for label in towers:
        assert torch.equal(fresh[label](images), towers[label](images))
    with pytest.raises(ValueError, match=r"unexpected other\.blocks\.1\.attn\.q") as told:
        mmpeft.load({"image": vit(), "other": vit(depth=1), "third": vit()}, tmp_path / "a")
    assert "missing third.blocks.0.attn.q" in str(told.value)
    assert "'other' is VisionTransformer" in str(told.value)


def test_a_single_module_is_no_pipeline(vit, adapted, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    with pytest.raises(ValueError, match="saved from a single module, not from a pipeline of image"):
        mmpeft.load({"image": vit()}, tmp_path / "a")


@pytest.mark.parametrize("methods", [LoRA(), AdaptFormer(bottleneck=4), [IA3(), LinearProbe()]])
@pytest.mark.parametrize("carries", [False, True], ids=["bare", "adapted"])
def test_all_problems_are_one_error_and_the_model_is_untouched(methods, carries, vit, adapted, tmp_path):
    _, handle = adapted(methods)
    handle.save(tmp_path / "a")

    def damage(tensors):
        names = sorted(tensors)
        damaged = {name: value for name, value in tensors.items() if name != names[0]}
        return damaged | {names[1]: tensors[names[1]][:1].clone().flatten()[:1], "surplus.weight": torch.ones(2)}

    rewrite(tmp_path / "a", damage)
    model = vit()
    if carries:
        mmpeft.adapt(model, LoRA(rank=1), "first")
        mmpeft.adapt(model, LoRA(rank=1), "second")
    before = snapshot(model)
    with pytest.raises(ValueError, match="missing ") as told:
        mmpeft.load(model, tmp_path / "a", "third")
    assert "unexpected surplus.weight" in str(told.value)
    assert "shape (1,), the model needs" in str(told.value)
    assert_untouched(model, before)


@pytest.mark.parametrize("changed", [{"depth": 2}, {"embed_dim": 16}, {"depth": 4, "num_classes": 7}])
@pytest.mark.parametrize("methods", [[LoRA(), LinearProbe()], AdaptFormer(), LoRA(targets=("blocks.2.mlp.fc1",))])
def test_a_wrong_model(changed, methods, vit, adapted, tmp_path):
    _, handle = adapted(methods)
    handle.save(tmp_path / "a")
    model = vit(**changed)
    before = snapshot(model)
    fits = isinstance(methods, LoRA) and changed.get("depth") == 4
    if fits:
        with pytest.warns(UserWarning, match=r"fits, but was made for VisionTransformer of [\d,]+ parameters"):
            mmpeft.load(model, tmp_path / "a")
        return
    with pytest.raises(ValueError, match="made for VisionTransformer") as told:
        mmpeft.load(model, tmp_path / "a")
    assert str(told.value).count("\n") >= 2
    assert_untouched(model, before)


def test_a_model_without_the_sites(vit, adapted, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    with pytest.raises(ValueError, match=r"has no linear site 'attn\.q' or 'attn\.v'") as told:
        mmpeft.load(timm.create_model("convnext_atto", num_classes=5), tmp_path / "a")
    assert "blocks.2.attn.qkv has tensors, and is no layer to adapt in this model" in str(told.value)


def test_another_head_is_no_other_model(vit, adapted, recwarn, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    mmpeft.load(vit(num_classes=0), tmp_path / "a")
    assert not [warning for warning in recwarn if "fits" in str(warning.message)]


@pytest.mark.parametrize("methods", [LoRA(), AdaptFormer()])
@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_nan_is_refused_unless_asked_for(methods, value, vit, adapted, tmp_path):
    _, handle = adapted(methods)
    key, parameter = next(iter(handle.state_dict().items()))
    parameter.flatten()[0] = value
    handle.save(tmp_path / "a")
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match="NaN or infinite values"):
        mmpeft.load(model, tmp_path / "a")
    assert_untouched(model, before)
    loaded = mmpeft.load(model, tmp_path / "a", allow_nan=True)
    assert not loaded.state_dict()[key].isfinite().all()


def test_a_name_that_is_taken_or_no_name(vit, adapted, tmp_path):
    model, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    before = snapshot(model)
    with pytest.raises(ValueError, match="already has an adapter 'main'"):
        mmpeft.load(model, tmp_path / "a")
    assert_untouched(model, before)
    manifest = json.loads((tmp_path / "a/mmpeft.json").read_text())
    (tmp_path / "a/mmpeft.json").write_text(json.dumps(manifest | {"name": "../../etc"}))
    with pytest.raises(ValueError, match=r"mmpeft\.json: 1 problem\n  name: .*got '\.\./\.\./etc'"):
        mmpeft.load(model, tmp_path / "a")
    assert_untouched(model, before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 2}, "format"),
        ({"layout": "pickle"}, "layout"),
        ({"surprise": 1}, "surprise"),
        ({"methods": [{"method": "lorra"}]}, "unknown 'lorra'.*did you mean 'lora'"),
        ({"methods": [{"method": "lora", "rank": 10**12}]}, "the model needs"),
        ({"methods": [{"method": "vpt", "tokens": 10**9}], "layout": "native"}, r"missing tokens\.vpt"),
    ],
)
def test_a_manifest_that_says_something_else(change, message, vit, adapted, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    manifest = json.loads((tmp_path / "a/mmpeft.json").read_text())
    (tmp_path / "a/mmpeft.json").write_text(json.dumps(manifest | change))
    model = vit()
    before = snapshot(model)
    with pytest.raises(ValueError, match=message):
        mmpeft.load(model, tmp_path / "a")
    assert_untouched(model, before)


def test_the_meta_device_has_no_weights_to_load_into(vit, adapted, tmp_path):
    _, handle = adapted(LoRA())
    handle.save(tmp_path / "a")
    with pytest.raises(ValueError, match="meta device"):
        mmpeft.load(vit().to("meta"), tmp_path / "a")


def test_saving_leaves_the_model_alone(adapted, tmp_path):
    model, handle = adapted([LoRA(), LinearProbe()])
    before, state = snapshot(model), copy.deepcopy(handle.state_dict())
    handle.save(tmp_path / "deep/down/a")
    assert_untouched(model, before)
    assert all(torch.equal(value, state[key]) for key, value in handle.state_dict().items())


def test_the_model_is_read_once(adapted, vit, monkeypatch, tmp_path):
    _, handle = adapted(LoRA(rank=2))
    handle.save(tmp_path / "a")
    model, reads = vit(), []
    for module in (planning, manifest):
        monkeypatch.setattr(module, "anatomy", lambda own, read=module.anatomy: reads.append(own) or read(own))
    mmpeft.load(model, tmp_path / "a")
    assert reads == [model]
