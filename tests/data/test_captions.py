from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import to_tensor

from mmpeft.data import DataConfig
from mmpeft.data.captions import captions_of, load_captions

TEXTS = {f"{n:02d}.png": [f"picture {n}", f"a sight of {n}", f"{n} again"][: 1 + n % 3] for n in range(10)}


def tokenizer(texts):
    """One token per text: the last number in it; context of two."""
    return torch.tensor([[int(next(word for word in text.split() if word.isdigit())), 99] for text in texts])


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(TEXTS):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / name)
    return tmp_path


def write(folder, kind):
    """Write the captions in one of the formats, and return the options that read them."""
    rows = [(name, text) for name, texts in TEXTS.items() for text in texts]
    if kind == "json":
        (folder / "captions.json").write_text(json.dumps({k: v[0] if len(v) == 1 else v for k, v in TEXTS.items()}))
    elif kind == "csv":
        lines = ["file_name,text", *(f'{name},"{text}"' for name, text in rows)]
        (folder / "metadata.csv").write_text("\n".join(lines))
    else:
        split = {0: "restval", 8: "val", 9: "test"}
        images = [
            {"filename": name, "split": split.get(n, "train"), "sentences": [{"raw": text} for text in texts]}
            for n, (name, texts) in enumerate(TEXTS.items())
        ]
        (folder.parent / "karpathy.json").write_text(json.dumps({"images": images}))
        return {"caption_path": str(folder.parent / "karpathy.json")}
    return {}


@pytest.mark.parametrize("kind", ["json", "csv", "karpathy"])
def test_three_formats_say_the_same(folder, kind):
    options = write(folder, kind)
    splits = load_captions(DataConfig(name="captions", path=str(folder), **options), to_tensor, tokenizer)
    parts = (splits.train, splits.val, splits.test)
    assert [len(split) for split in parts] == ([8, 1, 1] if kind == "karpathy" else [7, 1, 2])
    assert {sample.id: captions_of(sample) for split in parts for sample in split.samples} == TEXTS
    for split in parts:
        for index, sample in enumerate(split):
            number = int(sample["id"].removesuffix(".png"))
            assert sample["image"][0, 0, 0] == pytest.approx(number / 255)
            assert (sample["text"][: sample["captions"], 0] == number).all()
            assert (sample["text"][sample["captions"] :] == 0).all()
            assert sample["captions"] == (1 if split is splits.train else len(TEXTS[sample["id"]]))
            assert split.describe(index).startswith(f"'picture {number}'")
    if kind == "karpathy":
        assert splits.test.ids == ["09.png"]


def test_training_draws_one_of_several_captions(folder):
    write(folder, "csv")
    spoken = []

    def listening(texts):
        spoken.extend(texts)
        return tokenizer(texts)

    train = load_captions(DataConfig(name="captions", path=str(folder)), to_tensor, listening).train
    index = next(i for i, name in enumerate(train.ids) if len(TEXTS[name]) == 3)
    torch.manual_seed(0)
    for _ in range(30):
        train[index]
    assert set(spoken) == set(TEXTS[train.ids[index]])


def test_every_wrong_caption_is_named(folder):
    lines = [
        "file_name,text,split",
        "00.png,fine,train",
        "nowhere.png,lost,train",
        "01.png,,train",
        "02.png,odd,holdout",
    ]
    lines += [f"{name},fine,train" for name in list(TEXTS)[3:8]]
    (folder / "metadata.csv").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=r"metadata.csv: 1 of 9 captions belong to no image") as caught:
        load_captions(DataConfig(name="captions", path=str(folder)), to_tensor, tokenizer)
    for part in (
        "line 3 (nowhere.png)",
        "1 of 9 captions have no text: line 4 (01.png)",
        "1 of 9 captions are in no known split: line 5 (holdout)",
        "2 of 10 images under",
        "have no caption: 08.png, 09.png",
    ):
        assert part in str(caught.value)


def test_missing_or_unreadable_files_are_named(folder):
    def load(**options):
        return load_captions(DataConfig(name="captions", path=str(folder), **options), to_tensor, tokenizer)

    with pytest.raises(ValueError, match=r"data.caption_path: missing, and .* has 0 of the files captions.json"):
        load()
    with pytest.raises(ValueError, match=r"data.caption_path: 'nowhere.json' is not a file"):
        load(caption_path="nowhere.json")
    (folder / "captions.json").write_text("{")
    with pytest.raises(ValueError, match=r"captions.json: this is no JSON"):
        load()
    (folder / "captions.json").write_text("[]")
    with pytest.raises(ValueError, match="captions by image name, or Karpathy's"):
        load()
    (folder / "captions.json").unlink()
    (folder / "captions.csv").write_text("file,text\n")
    with pytest.raises(ValueError, match=r"no column file_name \(it has"):
        load()
    with pytest.raises(ValueError, match=r"data.name: 'digits' has no captions"):
        load_captions(DataConfig(name="digits"), to_tensor, tokenizer)
