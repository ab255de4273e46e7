"""Pictures and texts for denoisers: what a sample holds, that all its parts fit, and that broken data is named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_pipelines import pictures

from mmpeft.data.diffusion import DiffusionSplit, load_pictures
from mmpeft.data.diffusion_config import DiffusionData
from mmpeft.data.framing import Framing
from mmpeft.data.recognition import recognise


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return pictures(tmp_path / "pictures")


def load(resolution: int = 16, factor: int = 2, reference: Any = None, **settings: Any) -> Any:
    return load_pictures(DiffusionData.model_validate(settings), resolution, factor, reference)


def captions(folder: Path, **settings: Any) -> Any:
    return load(name="captions", path=str(folder), **settings)


def draw(split: DiffusionSplit, index: int, seed: int) -> dict[str, Any]:
    torch.manual_seed(seed)
    return split[index]


def test_captions_beside_pictures(folder: Path) -> None:
    data = captions(folder)
    assert len(data.train) + len(data.val) + len(data.test) == 12
    sample = data.train[0]
    assert sample["prompt"] == (folder / sample["id"]).with_suffix(".txt").read_text().strip()
    pixels = np.asarray(Image.open(folder / sample["id"])).transpose(2, 0, 1) / 127.5 - 1
    torch.testing.assert_close(sample["image"], torch.from_numpy(pixels).float())
    assert sample["sizes"].tolist() == [16, 16, 0, 0, 16, 16]


def test_a_text_without_picture_and_a_picture_without_text_are_named(folder: Path) -> None:
    (folder / "03.txt").rename(folder / "lost.txt")
    with pytest.raises(ValueError, match=r"belong to no image .*lost\.txt.*have no caption: 03\.png"):
        captions(folder)


def test_a_broken_picture_is_named(folder: Path) -> None:
    (folder / "05.png").write_bytes((folder / "05.png").read_bytes()[:60])
    with pytest.raises(ValueError, match=r"1 of 12 images can't be read: 05\.png"):
        captions(folder)


def test_a_missing_and_a_broken_control_image_are_named(folder: Path, tmp_path: Path) -> None:
    controls = pictures(tmp_path / "controls", 11, captions=False)
    with pytest.raises(ValueError, match=r"control_path: 1 of 12 pictures have no control image in .*: 11\.png"):
        captions(folder, control_path=str(controls))
    (controls / "11.jpg").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"controls: 1 of 12 images can't be read: 11\.png"):
        captions(folder, control_path=str(controls))


def test_a_control_image_goes_through_the_frame_of_its_picture(folder: Path) -> None:
    data = captions(folder, control_path=str(folder), augment=["flip", "crop"], bucket_step=None)
    for seed in range(4):
        sample = draw(data.train, 2, seed)
        torch.testing.assert_close(sample["control"] * 2 - 1, sample["image"])
    assert len({draw(data.train, 2, seed)["image"].numpy().tobytes() for seed in range(8)}) == 2


def test_views_are_that_many_and_evaluation_has_one(folder: Path) -> None:
    data = captions(folder, augment=["flip", "crop"], views=2, resolution=8)
    split = DiffusionSplit(data.train.samples, data.train.config, Framing(8), training=True)
    assert len({draw(split, 0, seed)["image"].numpy().tobytes() for seed in range(20)}) <= 2
    assert len({draw(split, 0, seed)["draw"] for seed in range(20)}) == 20
    assert len({draw(data.val, 0, seed)["image"].numpy().tobytes() for seed in range(5)}) == 1


def test_tags_are_shuffled_and_dropped_but_not_those_to_keep(folder: Path) -> None:
    for path in folder.glob("*.txt"):
        path.write_text("toy, red, big, old, soft\n")
    data = captions(folder, shuffle_tags=True, drop_tags=0.5, keep_tags=1)
    prompts = [draw(data.train, 0, seed)["prompt"].split(", ") for seed in range(30)]
    assert {prompt[0] for prompt in prompts} == {"toy"}
    assert {len(prompt) for prompt in prompts} > {2, 3, 4}
    assert any(prompt[1:] != sorted(prompt[1:], key=["red", "big", "old", "soft"].index) for prompt in prompts)
    assert data.val[0]["prompt"] == "toy, red, big, old, soft"


def test_concepts_with_their_classes(tmp_path: Path) -> None:
    own = []
    for name in ("dog", "cup"):
        pictures(tmp_path / name, 3, captions=False)
        pictures(tmp_path / f"{name}s", 2, captions=False)
        own.append({"path": str(tmp_path / name), "prompt": f"a <{name}>",
                    "class_path": str(tmp_path / f"{name}s"), "class_prompt": f"a {name}"})  # fmt: skip
    data = load(name="concepts", concepts=own)
    assert len(data.train) == len(data.val) == 6
    pairs = {(sample["prompt"], sample["class_prompt"]) for sample in (data.train[i] for i in range(6))}
    assert pairs == {("a <dog>", "a dog"), ("a <cup>", "a cup")}
    assert "class_image" not in data.val[0]
    (tmp_path / "cups" / "00.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"can't be read: .*cups/00\.png"):
        load(name="concepts", concepts=own)
    with pytest.raises(ValueError, match=r"concepts\.0\.path: '/nowhere' is not a folder"):
        load(name="concepts", concepts=[{"path": "/nowhere", "prompt": "a"}])


def test_pictures_of_a_concept_and_its_class_have_captions_of_their_own(tmp_path: Path) -> None:
    for name in ("dog", "dogs"):
        pictures(tmp_path / name, 3)
    pictures(tmp_path / "wolves", 2, captions=False)
    (tmp_path / "wolves" / "captions.json").write_text('{"00.png": "a wolf", "01.png": ["a grey wolf", "grey"]}')
    concept = {"path": str(tmp_path / "dog"), "class_path": [str(tmp_path / "dogs"), str(tmp_path / "wolves")]}
    data = load(name="concepts", concepts=[concept])
    drawn = [draw(data.train, seed % 3, seed) for seed in range(80)]
    assert {(sample["id"], sample["prompt"]) for sample in drawn} == {
        (f"{tmp_path}/dog/0{number}.png", f"a cat, {colour}") for number, colour in enumerate(("red", "green", "blue"))
    }
    assert {sample["class_prompt"] for sample in drawn} == {
        "a cat, red", "a cat, green", "a cat, blue", "a wolf", "a grey wolf", "grey"
    }  # fmt: skip
    assert {len(sample["class_id"].removeprefix(str(tmp_path))) for sample in drawn} == {12, 14}
    (tmp_path / "dogs" / "01.txt").unlink()
    with pytest.raises(ValueError, match=r"1 of 3 images under .*dogs have no caption: 01\.png"):
        load(name="concepts", concepts=[concept])
    data = load(name="concepts", concepts=[concept | {"class_prompt": "an animal"}])
    assert data.train[0]["class_prompt"] == "an animal"
    (tmp_path / "wolves" / "captions.json").unlink()
    with pytest.raises(ValueError, match=r"concepts\.0\.class_prompt: missing, and '.*wolves' has 0 of the files"):
        load(name="concepts", concepts=[concept | {"class_path": str(tmp_path / "wolves")}])
    with pytest.raises(ValueError, match=r"concepts\.0\.prompt: missing, and '.*wolves' has 0 of the files"):
        load(name="concepts", concepts=[{"path": str(tmp_path / "wolves")}])


def test_drawn_class_pictures_say_what_they_are() -> None:
    shapes = ["scenes/plain/star", "scenes/plain/moon"]
    data = load(32, 4, name="concepts", concepts=[{"path": shapes[0], "prompt": "a <new1>", "class_path": shapes}])
    for seed in range(20):
        sample = draw(data.train, 0, seed)
        prior = next(one for one in data.train.priors[0] if one.id == sample["class_id"])
        seen = recognise(prior.open())
        assert seen is not None
        assert seen.shape in sample["class_prompt"] and seen.colour in sample["class_prompt"]


def test_a_drawn_shape_is_a_concept_too() -> None:
    data = load(32, 4, name="concepts", concepts=[{"path": "scenes/plain/heart", "prompt": "a <new1>", "count": 5}])
    assert len(data.train) == 5
    assert data.train[0]["prompt"] == "a <new1>"
    for sample in data.train.samples:
        seen = recognise(sample.open())
        assert seen is not None
        assert (seen.shape, seen.overlap > 0.85, seen.size > 0.15) == ("heart", True, True)
    with pytest.raises(ValueError, match=r"no drawn scenes \(did you mean 'scenes/plain/heart'"):
        load(name="concepts", concepts=[{"path": "scenes/plain/hart", "prompt": "a"}])


def test_the_text_of_a_drawn_concept_and_of_its_class_names_what_is_drawn() -> None:
    texts = ["a {colour} <new1>", "a <new1> on a {ground} ground"]
    concept: dict[str, Any] = {"path": "scenes/plain/heart", "prompt": texts, "count": 9}
    prior = {"class_path": "scenes/plain/star", "class_prompt": texts}
    train = load(32, 4, name="concepts", concepts=[concept | prior]).train
    for sample in (*train.samples, *train.priors[0]):
        seen = recognise(sample.open())
        assert seen is not None
        assert [text.split()[place] for text, place in zip(sample.caption, (1, 4), strict=True)] == [
            seen.colour, seen.ground
        ]  # fmt: skip
    with pytest.raises(ValueError, match=r"concepts\.0\.prompt: 'a \{color\} <new1>': .* shape, colour, size"):
        load(name="concepts", concepts=[concept | {"prompt": "a {color} <new1>"}])


def test_rescaling_says_what_it_does_and_masks_the_rest(tmp_path: Path) -> None:
    root = pictures(tmp_path / "own", 1, size=(64, 64), captions=False)
    for file in root.glob("*.png"):
        Image.new("RGB", (64, 64), (255, 255, 255)).save(file)
    data = load(64, 8, name="concepts", concepts=[{"path": str(root), "prompt": "a toy"}], rescale=True)
    kinds = set()
    for seed in range(40):
        sample = draw(data.train, 0, seed)
        prefix = sample["prompt"].removesuffix("a toy")
        kinds.add(prefix)
        image, mask = sample["image"], sample["mask"]
        if prefix in ("a far away ", "very small "):
            assert (image[:, mask == 1] == 1).all()
            side = int((image[0] == 1).any(0).sum())
            assert 21 <= side < 0.6 * 64
            assert int(mask.sum()) == (side - 16) ** 2
            assert image[0, 0, 0] in (0, 1)
        else:
            assert (mask == 1).all() and (image == 1).all()
    assert kinds == {"", "a far away ", "very small ", "zoomed in ", "close up "}


def test_scenes_have_masks_to_learn_in_and_to_be_controlled_by() -> None:
    data = load(32, 4, name="scenes", style="plain", control="mask", masked=True)
    sample = data.train[0]
    inside = sample["control"].sum(0) > 0
    torch.testing.assert_close(inside.float(), sample["mask"])
    assert 0.02 < sample["mask"].mean() < 0.5


def test_a_reference_is_the_whole_picture(folder: Path) -> None:
    data = captions(folder, augment=["flip"], reference=lambda image: torch.tensor(image.size))
    assert data.train[0]["reference"].tolist() == [16, 16]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "concepts"}, "concepts: 0 of them with name: concepts"),
        ({"name": "concepts", "path": "x", "concepts": [{"path": "a", "prompt": "b"}]}, "each concept has its own"),
        (
            {"name": "concepts", "concepts": [{"path": "a", "class_prompt": "c"}]},
            "class_prompt: 'c' is of the pictures",
        ),
        ({"name": "captions", "path": "x", "masked": True}, "samples of name: captions have no masks"),
        ({"name": "captions", "path": "x", "rescale": True}, "rescale: true is for name: concepts"),
        ({"name": "captions", "path": "x", "control": "edges", "control_path": "y"}, "without control"),
        ({"name": "folder", "path": "x"}, "should be 'captions', 'scenes' or 'concepts'|no such option"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DiffusionData.model_validate(settings)
