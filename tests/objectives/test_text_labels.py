"""The scores of GLUE against scikit-learn and scipy, and losses that are sums."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef
from torch import Tensor, nn
from torch.nn.functional import one_hot

from mmpeft.objectives.text_labels import TextClassification, TextRegression


class Given(nn.Module):
    """Gives the logits that are its input."""

    def forward(self, input_ids: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=input_ids)


@pytest.mark.parametrize("classes", [2, 3])
def test_scores_of_classes(classes: int) -> None:
    torch.manual_seed(0)
    objective, model = TextClassification(classes), Given()
    logits, label = torch.randn(50, classes), torch.randint(classes, (50,))
    logits += one_hot(label, classes)
    for part in (slice(0, 20), slice(20, 50)):
        objective.update(model, {"id": [""], "input_ids": logits[part], "label": label[part]})
    found, said = objective.compute(), logits.argmax(-1)
    assert found["accuracy"] == pytest.approx(accuracy_score(label, said))
    assert found["f1"] == pytest.approx(f1_score(label, said, average="binary" if classes == 2 else "macro"))
    assert found["matthews"] == pytest.approx(matthews_corrcoef(label, said))
    loss, logs = objective.loss(model, {"input_ids": logits, "label": label})
    assert found["loss"] == pytest.approx(float(loss) / 50)
    assert int(logs["accuracy"]) == round(found["accuracy"] * 50)


def test_one_class_only_has_no_correlation() -> None:
    objective = TextClassification(2)
    objective.update(Given(), {"input_ids": torch.tensor([[1.0, 0.0]] * 4), "label": torch.tensor([0, 1, 1, 0])})
    assert objective.compute()["matthews"] == 0


def test_scores_of_numbers() -> None:
    torch.manual_seed(0)
    objective, model, label = TextRegression(), Given(), torch.randn(30, dtype=torch.float64)
    found = label.float()[:, None] + torch.randn(30, 1)
    for part in (slice(0, 7), slice(7, 30)):
        objective.update(model, {"input_ids": found[part], "label": label[part]})
    scores = objective.compute()
    assert scores["pearson"] == pytest.approx(pearsonr(found[:, 0], label).statistic)
    assert scores["spearman"] == pytest.approx(spearmanr(found[:, 0], label).statistic)
    loss, _ = objective.loss(model, {"input_ids": found, "label": label})
    assert scores["loss"] == pytest.approx(float(loss) / 30, rel=1e-5)
    objective.update(model, {"input_ids": torch.ones(3, 1), "label": label[:3]})
    assert objective.compute()["pearson"] == 0
