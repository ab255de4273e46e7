from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from mmpeft.objectives import recall
from mmpeft.objectives.recall import recall_scores


def make_features(images: int = 30, captions: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    owner = torch.arange(images).repeat_interleave(captions)[torch.randperm(images * captions, generator=generator)]
    image = normalize(torch.randn(images, 8, generator=generator), dim=-1)
    text = normalize(image[owner] + 0.3 * torch.randn(len(owner), 8, generator=generator), dim=-1)
    return {"image": image, "text": text, "owner": owner, "tokens": torch.arange(len(owner))[:, None]}


@pytest.mark.parametrize("chunk", [7, 1024])
def test_recall_is_what_counting_by_hand_gives(monkeypatch: pytest.MonkeyPatch, chunk: int) -> None:
    monkeypatch.setattr(recall, "CHUNK", chunk)
    made = make_features()
    scores, similarity = recall_scores(**made), made["image"] @ made["text"].T
    for depth in (1, 5, 10):
        texts = [any(made["owner"][j] == i for j in similarity[i].topk(depth).indices) for i in range(30)]
        images = [made["owner"][j] in similarity[:, j].topk(depth).indices for j in range(90)]
        assert scores[f"image_to_text_recall_{depth}"] == pytest.approx(sum(texts) / 30)
        assert scores[f"text_to_image_recall_{depth}"] == pytest.approx(sum(images) / 90)
    assert 0.3 < scores["text_to_image_recall_1"] < scores["text_to_image_recall_5"] < 1
    mean = sum(value for name, value in scores.items() if name != "mean_recall") / 6
    assert scores["mean_recall"] == pytest.approx(mean)


def test_a_caption_of_two_pictures_is_right_for_both() -> None:
    image = torch.eye(3)
    text = torch.eye(3)[[0, 0, 2]]
    scores = recall_scores(image, text, owner=torch.arange(3), tokens=torch.tensor([[5], [5], [6]]))
    assert scores["text_to_image_recall_1"] == 1
    assert scores["image_to_text_recall_1"] == pytest.approx(2 / 3)  # picture 1 lies off its caption
    apart = recall_scores(image, text, owner=torch.arange(3), tokens=torch.tensor([[5], [7], [6]]))
    assert apart["text_to_image_recall_1"] == pytest.approx(2 / 3)


def test_features_that_have_collapsed_find_nothing() -> None:
    made = make_features()
    same = {name: torch.ones_like(made[name]) / 8**0.5 for name in ("image", "text")}
    assert recall_scores(**made | same)["mean_recall"] == 0
