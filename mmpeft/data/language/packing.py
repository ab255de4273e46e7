"""Several rows in one training sample: which, and as what tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict
from collections.abc import Sequence
from heapq import heappop, heappush

import numpy as np

from mmpeft.data.language.encoding import Encoded


def fill_packs(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Return the members of each pack: longest first, each where the least room is left over (best-fit decreasing)."""
    packs: list[list[int]] = []
    with_room: defaultdict[int, list[int]] = defaultdict(list)  # packs by the room left in them, as heaps
    rooms: list[int] = []  # those that there are, sorted: never more than ``capacity``
    for member in sorted(range(len(lengths)), key=lambda row: (-lengths[row], row)):
        index = bisect_left(rooms, lengths[member])
        if index == len(rooms):
            packs.append([])
            room, pack = capacity, len(packs) - 1
        else:
            room = rooms[index]
            pack = heappop(with_room[room])
            if not with_room[room]:
                del rooms[index]
        packs[pack].append(member)
        room -= lengths[member]
        if not with_room[room]:
            insort(rooms, room)
        heappush(with_room[room], pack)
    return [sorted(pack) for pack in packs]


def join_pack(members: Sequence[Encoded]) -> Encoded:
    """Return rows one after another; positions begin anew with each, and no row's first token is learned."""
    kinds = np.concatenate([_unpredicted(member.kinds) for member in members])
    positions = np.concatenate([np.arange(len(member.tokens)) for member in members])
    return Encoded(np.concatenate([member.tokens for member in members]), kinds, positions)


def cut_pieces(lengths: Sequence[int], size: int) -> list[list[tuple[int, int, int]]]:
    """Cut rows, one after another, at every ``size``: each piece is of (row, from, to) parts. The rest is a piece."""
    pieces: list[list[tuple[int, int, int]]] = [[]]
    left = size
    for row, length in enumerate(lengths):
        start = 0
        while start < length:
            end = min(length, start + left)
            pieces[-1].append((row, start, end))
            left, start = left - (end - start), end
            if not left:
                pieces.append([])
                left = size
    return [piece for piece in pieces if sum(end - start for _, start, end in piece) > 1]


def cut(row: Encoded, start: int, end: int) -> Encoded:
    """Return a part of a row."""
    return Encoded(row.tokens[start:end], row.kinds[start:end])


def _unpredicted(kinds: np.ndarray) -> np.ndarray:
    """Return kinds with the first as given: nothing in front of it predicts it."""
    return np.concatenate([[0], kinds[1:]]).astype(kinds.dtype)
