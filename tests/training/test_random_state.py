import json
import random

import numpy as np
import torch

from mmpeft.training import random_state


def draw() -> list[float]:
    return [
        random.gauss(0, 1),
        float(np.random.normal()),
        float(torch.randn(())),
        random.random(),
        float(np.random.rand()),
    ]


def test_restored_generators_continue_alike_after_json() -> None:
    draw()
    state = json.loads(json.dumps(random_state.capture()))
    expected = [draw(), draw()]
    random_state.restore(state)
    assert [draw(), draw()] == expected


def test_seeded_depends_on_its_parts_and_leaves_no_trace() -> None:
    before = json.dumps(random_state.capture())
    with random_state.seeded(0, 1, "a"):
        first = draw()
    draw()
    random_state.restore(json.loads(before))
    with random_state.seeded(0, 1, "a"):
        assert draw() == first
    with random_state.seeded(0, 1, "b"):
        assert draw() != first
    assert json.dumps(random_state.capture()) == before
