"""Every diffusion task end to end on a tiny random pipeline: two steps, scores, pictures, and what goes wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import PIPELINES, pictures, stable_diffusion

from mmpeft.cli import main
from mmpeft.cli.shipped import find_task, load_task
from mmpeft.data.readers.captions import captioned

CONTROL = {"method": "controlnet", "widths": [8, 16]}
WORDS = [
    {"method": "custom_diffusion"},
    {"method": "textual_inversion", "words": ["<new1>"], "init": "cat"},
]
PREVIEW = {"every": 1, "steps": 2, "prompts": ["a cat", "a red cat"]}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the pipeline, pictures with captions, a concept and its class."""
    root = tmp_path_factory.mktemp("diffusion")
    stable_diffusion().save_pretrained(root / "model")
    pictures(root / "pictures")
    pictures(root / "concept", 3, captions=False)
    pictures(root / "class", 4, captions=False)
    return root


def load(name: str) -> Any:
    return load_task(find_task(f"diffusion/{name}"))


def make(task: Any, here: Path, output: Path, adapters: Any, **changes: Any) -> Any:
    settings = {
        "task": f"diffusion/{task.Config.__module__}",
        "model": str(here / "model"),
        "adapters": {"main": adapters},
        "data": {"name": "captions", "path": str(here / "pictures")},
        "train": {"max_steps": 2, "batch_size": 2},
        "sampling": {"steps": 2},
        "output": str(output),
    }
    return task.Config.model_validate(settings | changes)


def concepts(here: Path, prior: bool = True, **more: Any) -> dict[str, Any]:
    own: dict[str, Any] = {"path": str(here / "concept"), "prompt": ["a <new1> cat", "one <new1> cat"]}
    if prior:
        own |= {"class_path": str(here / "class"), "class_prompt": "a cat"}
    return {"name": "concepts", "concepts": [own], **more}


CASES: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "lora": ("lora", {"method": "lora", "rank": 2, "towers": "unet"}, {}),
    "lora_text": ("lora", {"method": "lora", "rank": 2, "towers": "text"}, {}),
    "controlnet": ("control", CONTROL, {"control": "edges"}),
    "t2i_adapter": ("control", {"method": "t2i_adapter", "factor": 2, "depth": 1}, {"control": "edges"}),
    "custom_diffusion": ("concept", WORDS, {"rescale": True}),
    "textual_inversion": ("concept", [{**WORDS[1], "vectors": 2}], {}),
    "dreambooth": ("concept", {"method": "full_fine_tuning", "towers": "unet"}, {}),
}


@pytest.mark.parametrize("kind", CASES)
def test_two_steps_scores_and_a_picture(
    here: Path, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name, adapters, data = CASES[kind]
    task = load(name)
    data = concepts(here, **data) if name == "concept" else {"name": "captions", "path": str(here / "pictures"), **data}
    config = make(task, here, tmp_path / "run", adapters, data=data, preview=PREVIEW)
    metrics = task.run(config)
    assert 0.1 < metrics["test"]["loss"] < 5
    assert ("frozen" in metrics) == (name != "concept")
    assert json.loads((config.output / "metrics.json").read_text()) == metrics
    assert Image.open(config.output / "samples" / "step_2.png").size == (32, 16)
    assert (config.output / "curves.png").is_file()
    assert task.evaluate(config) == pytest.approx(metrics["test"])

    capsys.readouterr()
    path = task.predict(config, 0).picture
    assert path == config.output / "prediction_0.png"
    assert Image.open(path).size == (16, 16)
    assert "WARNING" not in capsys.readouterr().out


def test_an_image_prompt_by_the_embedded_clip(here: Path, tmp_path: Path) -> None:
    task = load("image_prompt")
    adapters: dict[str, Any] = {"method": "ip_adapter", "features": 3, "tokens": 2}
    changes = {"image_encoder": "tiny/clip", "loss": {"drop": {"text": 0.3, "image": 0.3, "both": 0.2}}}
    with pytest.raises(ValueError, match="but the encoder gives") as refusal:
        task.check(make(task, here, tmp_path, adapters, **changes))
    adapters["features"] = int(str(refusal.value).split()[-1])
    config = make(task, here, tmp_path / "run", adapters, preview=PREVIEW, **changes)
    metrics = task.run(config)
    assert task.evaluate(config) == pytest.approx(metrics["test"])
    assert task.predict(config, 1).picture.is_file()


@pytest.mark.parametrize("kind", ["sdxl", "sd3", "flux", "pixart"])
def test_other_families(here: Path, tmp_path: Path, kind: str) -> None:
    PIPELINES[kind]().save_pretrained(tmp_path / "model")
    tower = "unet" if kind == "sdxl" else "transformer"
    task = load("lora")
    data = {"name": "captions", "path": str(here / "pictures"), "resolution": 16}
    adapters = {"method": "lora", "rank": 2, "towers": tower}
    config = make(
        task, here, tmp_path / "run", adapters, model=str(tmp_path / "model"), data=data, preview=PREVIEW,
        cache={"text": "memory"}, train={"max_steps": 2, "batch_size": 2, "gradient_checkpointing": True},
    )  # fmt: skip
    assert task.run(config)["test"]["loss"] < 10
    assert task.predict(config, 0).picture.is_file()


def test_a_model_of_v_learns_the_last_step(here: Path, tmp_path: Path) -> None:
    stable_diffusion("v_prediction").save_pretrained(tmp_path / "model")
    changes = {"loss": {"zero_terminal_snr": True, "min_snr": 5, "times": "cubic"}, "preview": PREVIEW}
    task = load("lora")
    config = make(task, here, tmp_path / "run", CASES["lora"][1], model=str(tmp_path / "model"), **changes)
    trainer, _ = task.build(config)
    assert trainer.objective.schedule.prediction == "v_prediction"
    assert trainer.objective.schedule.signal[-1] == 0
    trainer.fit()
    assert [one["nan"] for one in trainer.directory.records() if one["split"] == "preview"] == [0, 0]


def test_half_precision_of_the_frozen_weights(here: Path, tmp_path: Path) -> None:
    task = load("lora")
    config = make(task, here, tmp_path, CASES["lora"][1], precision="bf16", preview=PREVIEW)
    trainer, _ = task.build(config)
    model = trainer.model
    assert {p.dtype for p in model.vae.parameters()} == {torch.float32}
    assert {p.dtype for p in trainer.adapters.parameters()} == {torch.float32}
    assert model.unet.conv_in.weight.dtype == torch.bfloat16
    trainer.fit()
    assert (tmp_path / "samples" / "step_2.png").is_file()


def test_gradient_checkpointing_changes_no_gradient(here: Path, tmp_path: Path) -> None:
    found = []
    for checkpointing in (False, True):
        adapters = {"method": "lora", "rank": 2, "targets": ["attn.q", "cross.k"], "towers": "unet"}
        train = {"max_steps": 2, "batch_size": 2, "gradient_checkpointing": checkpointing}
        trainer, _ = load("lora").build(make(load("lora"), here, tmp_path, adapters, train=train))
        assert trainer.model.unet.is_gradient_checkpointing == checkpointing
        torch.manual_seed(0)
        trainer.try_step(trainer.first_window())
        found.append([parameter.grad.clone() for parameter in trainer.adapters.parameters()])
    torch.testing.assert_close(found[0], found[1])


def test_the_command_line_trains_draws_and_evaluates(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "mine.yaml"
    config.write_text(
        f"task: diffusion/lora\nmodel: {here / 'model'}\nadapters: {{main: {{method: lora, rank: 2, towers: unet}}}}\n"
        f"data: {{name: captions, path: {here / 'pictures'}}}\ntrain: {{max_steps: 1}}\nsampling: {{steps: 2}}\n"
        f"output: {tmp_path / 'run'}\n"
    )
    assert main(["check", str(config)]) == 0
    assert "'a cat, red', image (3, 16, 16)" in capsys.readouterr().out
    assert main(["train", str(config)]) == 0
    assert main(["predict", str(tmp_path / "run"), "--index", "1", "prompt=a blue cat"]) == 0
    assert f"picture: {tmp_path / 'run' / 'prediction_1.png'}" in capsys.readouterr().out
    assert main(["eval", str(tmp_path / "run")]) == 0


def test_black_and_broken_pictures_are_reported(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A decoder whose last bias is very negative paints black; one that is NaN paints nothing."""
    for bias, fault in ((-100.0, "black"), (float("nan"), "nan")):
        broken = tmp_path / fault
        shutil.copytree(here / "model", broken)
        from safetensors.torch import load_file, save_file

        file = broken / "vae" / "diffusion_pytorch_model.safetensors"
        weights = load_file(file)
        weights["decoder.conv_out.bias"].fill_(bias)
        save_file(weights, file, metadata={"format": "pt"})
        task = load("lora")
        config = make(task, here, tmp_path / f"run_{fault}", CASES["lora"][1], model=str(broken), preview=PREVIEW)
        capsys.readouterr()
        trainer, _ = task.build(config)
        trainer.fit()
        output = capsys.readouterr()
        assert "WARNING: 'a cat', 'a red cat' " + {"black": "black", "nan": "not all numbers"}[fault] in (
            output.out + output.err
        )
        record = [one for one in trainer.directory.records() if one["split"] == "preview"][-1]
        assert record[fault] == 2
        assert (config.output / record["pictures"]).is_file()


@pytest.mark.parametrize(
    ("name", "adapters", "changes", "message"),
    [
        ("control", CONTROL, {}, "data.control: missing; edges or mask"),
        ("concept", WORDS, {}, "data.name: 'captions': this task learns name: concepts"),
        ("lora", CONTROL, {}, r"adapters\.main: no control image for it: set data\.control"),
        ("lora", CASES["lora_text"][1], {"cache": {"text": "memory"}}, "adapter 'main' changes the text encoder"),
        ("lora", CASES["lora"][1], {"model": {"name": "MODEL", "image_size": 8}}, "set data.resolution"),
        ("lora", CASES["lora"][1], {"augment": ["flip"], "cache": {"latents": "disk"}}, "set data.views"),
        ("lora", CASES["lora"][1], {"resolution": 17}, r"data\.resolution: 17 is no multiple of 2"),
        ("lora", CASES["lora"][1], {"augment": ["rotate"]}, r"augment: \['rotate'\] not among"),
        ("lora", CASES["lora"][1], {"views": 3}, "views: 3: pictures are always the same"),
    ],
)
def test_what_does_not_go_together(
    here: Path, tmp_path: Path, name: str, adapters: Any, changes: dict[str, Any], message: str
) -> None:
    task = load(name)
    data = {key: value for key, value in changes.items() if key in ("augment", "resolution", "views")}
    other = {key: value for key, value in changes.items() if key not in data}
    if "model" in other:
        other["model"] = other["model"] | {"name": str(here / "model")}
    with pytest.raises(ValueError, match=message):
        task.check(
            make(
                task,
                here,
                tmp_path,
                adapters,
                data={"name": "captions", "path": str(here / "pictures"), **data},
                **other,
            )
        )


def test_generate_with_several_adapters(here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("lora", "controlnet"):
        kind, adapters, data = CASES[name]
        task = load(kind)
        data = {"name": "captions", "path": str(here / "pictures"), **data}
        task.run(make(task, here, tmp_path / name, adapters, data=data))
    task = load("generate")
    config = task.Config.model_validate({
        "task": "diffusion/generate",
        "model": str(here / "model"),
        "load": {
            "style": {"path": str(tmp_path / "lora" / "adapter"), "scale": 0.5},
            "shape": {
                "path": str(tmp_path / "controlnet" / "adapter"), "edges": True,
                "control": str(here / "pictures" / "00.png"),
            },
        },
        "prompts": ["a cat", "a red cat"],
        "count": 2,
        "sampling": {"steps": 2},
        "output": str(tmp_path / "drawn"),
    })  # fmt: skip
    task.run(config)
    names = [f"000{i}.png" for i in range(4)]
    assert sorted(path.name for path in config.output.iterdir()) == [*names, "metadata.csv"]
    assert (tmp_path / "drawn.png").is_file()
    drawn = captioned(config.output, config.output / "metadata.csv")
    assert {sample.id: sample.caption for sample in drawn} == dict(
        zip(names, [("a cat",)] * 2 + [("a red cat",)] * 2, strict=True)
    )
    first, second = (np.asarray(Image.open(config.output / f"000{i}.png")) for i in (0, 1))
    assert (first != second).any()
    assert "4 pictures" in capsys.readouterr().out


def test_pictures_of_several_shapes_are_trained_in_batches_of_one(here: Path, tmp_path: Path) -> None:
    shutil.copytree(here / "pictures", tmp_path / "pictures")
    for name, size in (("wide", (16, 32)), ("high", (40, 20))):
        for path in pictures(tmp_path / name, 6, size=size).iterdir():
            shutil.move(path, tmp_path / "pictures" / f"{name}_{path.name}")
    task = load("control")
    data = {"name": "captions", "path": str(tmp_path / "pictures"), "control": "edges", "bucket_step": 4}
    config = make(task, here, tmp_path / "run", CONTROL, data=data, train={"epochs": 1, "batch_size": 3})
    shapes = {tuple(batch["image"].shape[2:]) for batch, _ in task.build(config)[0].batches}
    assert shapes == {(16, 16), (12, 20), (20, 12)}
    assert task.run(config)["test"]["loss"] < 5
