from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor, nn
from torch.nn.functional import normalize

from mmpeft.objectives.contrastive import Contrastive


class TwoTowers(nn.Module):
    """Linear towers; a caption's features are looked up by its first token."""

    def __init__(self, bias: float | None = -3.0) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 4, bias=False), nn.Embedding(20, 4)
        self.scale = nn.Parameter(torch.tensor(math.log(7.0)))
        self.register_buffer("bias", None if bias is None else torch.tensor(bias))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        return self.image(image), self.text(text[:, 0]), self.scale.exp(), self.bias


def make_batch(tokens: list[int], captions: int = 1, counted: bool = True) -> dict[str, Any]:
    """Pictures that depend on their place; the caption of picture i is token i, and ``captions`` - 1 others."""
    image = torch.randn(20, 6, generator=torch.Generator().manual_seed(1))[: len(tokens)]
    text = torch.tensor([[[(token + 3 * number) % 20, 0] for number in range(captions)] for token in tokens])
    count = torch.full((len(tokens),), captions)
    return {"image": image, "text": text, "captions": count, "id": [*map(str, tokens)], "counted": counted}


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_losses_are_those_of_open_clip(name: Any) -> None:
    model, batch = TwoTowers(), make_batch(list(range(9)))
    total, logs = Contrastive(name).loss(model, batch)
    image, text, scale, bias = model(batch["image"], batch["text"][:, 0])
    image, text = normalize(image, dim=-1), normalize(text, dim=-1)
    theirs = ClipLoss()(image, text, scale) if name == "clip" else SigLipLoss()(image, text, scale, bias)
    torch.testing.assert_close(total / 9, theirs)
    assert logs["batch_accuracy"] == ((image @ text.T).argmax(1) == torch.arange(9)).sum()


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_the_losses_are_their_formulas(name: Any) -> None:
    model, batch = TwoTowers(), make_batch(list(range(5)))
    image, text, scale, bias = model(batch["image"], batch["text"][:, 0])
    expected = 0.0
    for i in range(5):
        z = [[(scale * (a @ b) / a.norm() / b.norm()).item() for b in text] for a in image]
        if name == "clip":
            expected -= z[i][i] - math.log(sum(math.exp(z[i][j]) for j in range(5))) / 2
            expected += math.log(sum(math.exp(z[j][i]) for j in range(5))) / 2
        else:
            signs = [1 if j == i else -1 for j in range(5)]
            expected += sum(math.log1p(math.exp(-s * (v + float(bias)))) for s, v in zip(signs, z[i], strict=True))
    assert Contrastive(name).loss(model, batch)[0].item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["clip", "siglip"])
def test_a_repeated_caption_is_no_negative(name: Any) -> None:
    model, batch = TwoTowers(), make_batch([4] * 6)
    loss, _ = Contrastive(name).loss(model, batch)
    if name == "clip":
        image, text, scale, _ = model(batch["image"], batch["text"][:, 0])
        z = scale * normalize(text, dim=-1) @ normalize(image, dim=-1).T
        expected = 3 * math.log(6) - (z.log_softmax(-1) / 6).sum() / 2
    else:
        image, text, scale, bias = model(batch["image"], batch["text"][:, 0])
        z = scale * normalize(image, dim=-1) @ normalize(text, dim=-1).T + bias
        expected = -z.sigmoid().log().sum()
    torch.testing.assert_close(loss, torch.as_tensor(expected))


def test_siglip_without_a_bias_is_refused() -> None:
    with pytest.raises(ValueError, match="loss: 'siglip' needs a model with a logit bias"):
        Contrastive("siglip").loss(TwoTowers(bias=None), make_batch([1, 2]))


def test_half_precision_stays_out_of_the_logits() -> None:
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = Contrastive().loss(TwoTowers(), make_batch([1, 2, 3]))
    assert loss.dtype == torch.float32


def test_scores_are_over_the_split_with_every_caption() -> None:
    model, objective = TwoTowers(), Contrastive()
    for tokens in ([0, 1, 2], [7, 8]):
        batch = make_batch(tokens, captions=2)
        batch["captions"] = torch.tensor([2, 1, 2][: len(tokens)])
        objective.update(model, batch)
    assert [len(part["text"]) for part in objective.parts] == [5, 3]
    assert objective.parts[0]["owner"].tolist() == [0, 0, 1, 2, 2]
    scores = objective.compute()
    assert scores["image_to_text_recall_10"] == scores["text_to_image_recall_5"] == 1
    assert objective.parts == []


def _process(rank: int, shares: list[list[int]], port: int, folder: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=len(shares)
    )
    whole, found = make_batch([token for share in shares for token in share]), {}
    start, share = sum(map(len, shares[:rank])), shares[rank]
    batch = make_batch(share or [0], counted=bool(share))
    batch["image"] = whole["image"][start : start + len(share)] if share else batch["image"]
    for name in ("clip", "siglip"):
        model = nn.parallel.DistributedDataParallel(TwoTowers())
        loss, _ = Contrastive(name).loss(model, batch)
        (loss * len(shares)).backward()
        found[name] = [loss.detach(), *(p.grad for p in model.parameters())]
    torch.save(found, Path(folder) / f"{rank}.pt")
    torch.distributed.barrier()


@pytest.mark.parametrize("shares", [[[1, 2, 9], [4, 5]], [[1, 2, 9], []]], ids=["uneven", "one has none"])
def test_two_processes_have_the_gradient_of_one(shares: list[list[int]], tmp_path: Path) -> None:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_process, (shares, port, str(tmp_path)), nprocs=2)
    parts = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for name in ("clip", "siglip"):
        model = TwoTowers()
        loss, _ = Contrastive(name).loss(model, make_batch([token for share in shares for token in share]))
        loss.backward()
        torch.testing.assert_close(parts[0][name][0] + parts[1][name][0], loss.detach())
        for index, parameter in enumerate(model.parameters(), 1):
            torch.testing.assert_close(parts[0][name][index], parameter.grad)
            assert torch.equal(parts[0][name][index], parts[1][name][index])
