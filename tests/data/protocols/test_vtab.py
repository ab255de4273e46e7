from __future__ import annotations

import pytest

from mmpeft.data.protocols.vtab import VTAB, vtab_means

PUBLISHED = {
    "SSF": ((81.57, 86.55, 58.96), 73.10, 75.69),
    "NOAH": ((80.26, 84.88, 61.30), 73.25, 75.48),
}
"""Means of the three groups as published, then of the 19 tasks, and of the groups."""


@pytest.mark.parametrize("method", PUBLISHED)
def test_both_means_are_the_published_ones(method):
    groups, tasks, mean = PUBLISHED[method]
    names = ("natural", "specialized", "structured")
    scores = {task: dict(zip(names, groups, strict=True))[facts.group] for task, facts in VTAB.items()}
    found = vtab_means(scores)
    assert (round(found.tasks, 2), round(found.groups, 2)) == (tasks, mean)
    assert (found.natural, found.specialized, found.structured) == pytest.approx(groups)


def test_there_are_seven_four_and_eight_tasks():
    groups = [facts.group for facts in VTAB.values()]
    assert [groups.count(name) for name in ("natural", "specialized", "structured")] == [7, 4, 8]


def test_a_mean_of_fewer_tasks_is_refused():
    scores = dict.fromkeys(VTAB, 50.0)
    del scores["dmlab"]
    with pytest.raises(ValueError, match="missing: dmlab; unknown: mnist"):
        vtab_means(scores | {"mnist": 99.0})
