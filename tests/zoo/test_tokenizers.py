from __future__ import annotations

import json

import open_clip
import pytest
import torch

from mmpeft.zoo import load_tokenizer
from mmpeft.zoo.cards import WEIGHTS
from mmpeft.zoo.language_models import load_text_tokenizer


def test_open_clip_gives_its_own():
    ids = load_tokenizer("open_clip/ViT-B-32/openai")(["a cat"])
    assert torch.equal(ids, open_clip.get_tokenizer("ViT-B-32")(["a cat"]))


@pytest.fixture
def folder(tmp_path):
    """A transformers CLIP with a vocabulary of letters, as it lies on disk."""
    transformers = pytest.importorskip("transformers")
    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = [
        *letters,
        *(letter + "</w>" for letter in letters),
        "ca",
        "cat</w>",
        "<|startoftext|>",
        "<|endoftext|>",
    ]
    (tmp_path / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(vocabulary)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\nc a\nca t</w>\n")
    tokenizer = transformers.CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    tokenizer.save_pretrained(tmp_path)
    transformers.CLIPConfig(text_config={"vocab_size": 60, "max_position_embeddings": 7}).save_pretrained(tmp_path)
    return tmp_path


def test_transformers_are_padded_and_cut_to_the_positions_of_the_model(folder):
    tokenizer = load_tokenizer(str(folder))
    ids = tokenizer(["a b", "a b c d e f g h i"])
    assert ids.shape == (2, 7)
    assert ids.dtype == torch.int64
    assert torch.equal(tokenizer("a b"), ids[:1])
    assert (ids == ids[0, 0]).sum(1).tolist() == [1, 1]
    assert ids[1, -1] == ids[0, -1]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tiny/vit", "'tiny_vit' has no text tower"),
        ("tiny/clop", "did you mean 'tiny/clip'"),
        ("timm/resnet18", "timm has no tokenizers here, only hf, open_clip, tiny"),
        ("open_clip/ViT-B-33", "open_clip has no 'ViT-B-33'"),
        ("open_clip/ViT-B-32@main", "revision='main' can't be applied"),
        ("./nowhere", "model 'nowhere': expected NAME.safetensors with NAME.json"),
        ("clip", "no library 'clip'"),
    ],
)
def test_what_has_no_tokenizer_says_so(source, message):
    with pytest.raises(ValueError, match=message):
        load_tokenizer(source)


def test_a_model_without_text_is_refused(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no text tower"):
        load_tokenizer(str(tmp_path))


def test_a_language_model_gives_its_own_tokenizer(tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.GPT2Config(vocab_size=300).save_pretrained(tmp_path)
    own = transformers.AutoTokenizer.from_pretrained(WEIGHTS / "tiny_llm")
    own.save_pretrained(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    assert isinstance(tokenizer, transformers.PreTrainedTokenizerBase)
    assert tokenizer("a hen").input_ids == own("a hen").input_ids


def test_a_model_of_images_has_no_language_tokenizer() -> None:
    with pytest.raises(ValueError, match="language models are hf/OWNER/NAME, tiny/llm, or a folder of transformers"):
        load_text_tokenizer("tiny/clip")
