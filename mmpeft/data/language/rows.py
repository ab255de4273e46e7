"""Rows of files, folders and hubs, read when they are asked for."""

from __future__ import annotations

import csv
import json
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from itertools import accumulate
from pathlib import Path
from typing import Any

from mmpeft.data.language.source_config import TextSource
from mmpeft.data.language.tiny.sets import SETS, SPLITS, make_rows
from mmpeft.data.samples import listed
from mmpeft.data.splits import ALIASES
from mmpeft.data.text_files import read_json, read_text, undecodable
from mmpeft.optional import require
from mmpeft.settings import nearest

TEXTS = (".txt", ".md")
TABLES = (".jsonl", ".json", ".csv", ".parquet")


MOST_BYTES = 2**26
"""Of one line of a .jsonl file."""
NESTED = "is nested too deep: remove it"


class BadRowError(ValueError):
    """A row that nothing can be learned from, and what to do about it."""


@dataclass(frozen=True)
class RowSource:
    """The rows of one file or one split of a hub's data set."""

    name: str
    """How it is called in messages."""
    split: str | None
    """``train``, ``validation`` or ``test`` if its name says so."""
    count: int
    read: Callable[[int], Any]
    """Return the row with a given number, from 0: a dict, if it is well-formed."""


class Rows:
    """All rows of some sources, one after another; each is read again whenever it is asked for."""

    def __init__(self, sources: Sequence[RowSource]) -> None:
        self.sources = sources
        self.ends = list(accumulate(source.count for source in sources))

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def __getitem__(self, index: int) -> dict[str, Any]:
        source, number = self._find(index)
        row = source.read(number)
        if not isinstance(row, dict):
            raise BadRowError(f"is {type(row).__name__}, not an object with columns")
        return row

    def id(self, index: int) -> str:
        """Return a row's name: its file and its number, from 1."""
        source, number = self._find(index)
        return f"{source.name}:{number + 1}"

    def split(self, index: int) -> str | None:
        """Return the split that a row belongs to, if its file says so."""
        return self._find(index)[0].split

    def _find(self, index: int) -> tuple[RowSource, int]:
        number = bisect_right(self.ends, index)
        return self.sources[number], index - (self.ends[number] - self.sources[number].count)


def read_rows(path: str, config: TextSource) -> Rows:
    """Return the rows of a file, a folder, or a data set on the hub.

    Raises:
        ValueError: If there is nothing, or nothing that is known.
        ImportError: If a parquet file or a hub needs a library that is not installed.
    """
    if path in SETS:
        return Rows(_generated(path, config))
    source = Path(path).expanduser()
    known = (*TABLES, *(TEXTS if config.documents else ()))
    if source.is_dir():
        files = sorted(file for file in source.rglob("*") if file.suffix in known and file.is_file())
        if not files:
            raise ValueError(f"data.path: folder {path!r} has no file of {', '.join(known)}")
        return Rows([_open(file, str(file.relative_to(source)), _split_of(file)) for file in files])
    if source.is_file():
        if source.suffix not in known:
            raise ValueError(f"data.path: {path!r}: a file of {', '.join(known)} is wanted")
        return Rows([_open(source, source.name, None)])
    if source.suffix in (*TABLES, *TEXTS) or path.startswith(("/", ".", "~")) or path.count("/") != 1:
        raise ValueError(
            f"data.path: {path!r} is neither a file nor a folder, nor OWNER/NAME of a data set on the hub, nor "
            f"generated{nearest(path, SETS)}"
        )
    return Rows(_from_hub(path, config.subset))


def _generated(name: str, config: TextSource) -> list[RowSource]:
    counts = zip(SPLITS, config.generated, strict=True)
    parts = [(split, make_rows(name, split, count, config.split_seed)) for split, count in counts]
    return [RowSource(f"{name}/{split}", split, len(rows), rows.__getitem__) for split, rows in parts]


def _split_of(file: Path) -> str | None:
    """Return the split that a file's name begins with: ``train-00000-of-00002.parquet``."""
    return ALIASES.get(file.stem.split("-")[0].split(".")[0].lower())


def _open(path: Path, name: str, split: str | None) -> RowSource:
    """Return the rows of one file.

    Raises:
        ValueError: If it can't be read.
    """
    try:
        return _opened(path, name, split)
    except OSError as error:
        raise ValueError(f"data.path: {path} can't be read: {error.strerror}") from None


def _opened(path: Path, name: str, split: str | None) -> RowSource:
    if path.suffix in TEXTS:
        return RowSource(name, split, 1, partial(_read_text, path))
    if path.suffix == ".jsonl":
        offsets = _line_offsets(path)
        return RowSource(name, split, len(offsets), partial(_read_line, path, offsets))
    if path.suffix == ".parquet":
        datasets = require("datasets", "mmpeft[data]")
        try:
            table = datasets.load_dataset("parquet", data_files=str(path), split="train")
        except Exception as error:  # whatever its reader meets with
            raise ValueError(f"data.path: {path} can't be read as parquet: {_first_line(error)}") from error
        return RowSource(name, split, len(table), table.__getitem__)
    if path.suffix == ".csv":
        rows = _read_csv(path)
        return RowSource(name, split, len(rows), partial(_csv_row, rows))
    rows = _read_json(path)
    return RowSource(name, split, len(rows), partial(_json_row, rows))


def _line_offsets(path: Path) -> list[int]:
    """Return where each line begins that is not empty; none is read as a whole that is too long."""
    offsets, begin, position, is_blank = [], 0, 0, True
    with path.open("rb") as file:
        while piece := file.readline(MOST_BYTES):
            if is_blank and piece.strip():
                offsets.append(begin)
                is_blank = False
            position += len(piece)
            if piece.endswith(b"\n"):
                begin, is_blank = position, True
    return offsets


def _read_text(path: Path, number: int) -> dict[str, str]:
    try:
        return {"text": path.read_text(encoding="utf-8-sig")}
    except UnicodeDecodeError as error:
        raise BadRowError(f"can't be read: {undecodable(error)}") from None


def _read_line(path: Path, offsets: Sequence[int], number: int) -> Any:
    with path.open("rb") as file:
        file.seek(offsets[number])
        line = file.readline(MOST_BYTES + 1)
    if len(line) > MOST_BYTES:
        raise BadRowError(f"has more than {MOST_BYTES:,} bytes: cut or remove the line")
    try:
        row = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise BadRowError(f"is no JSON ({error}): correct or remove the line") from None
    return _encodable(row) if b"\\u" in line else row


def _encodable(row: Any) -> Any:
    """Return a row; raise a BadRowError if it has half of a surrogate pair, which JSON can spell and UTF-8 can't."""
    try:
        json.dumps(row, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = ascii(error.object[error.start])
        raise BadRowError(f"has {half}, which is half a character: correct or remove it") from None
    return row


def _read_csv(path: Path) -> list[Any]:
    table = csv.DictReader(StringIO(read_text(path), newline=""))
    try:
        repeated = [name for name, count in Counter(table.fieldnames).items() if count > 1]
        if repeated:
            raise ValueError(f"data.path: {path}: a column of the same name comes twice: {listed(repeated)}")
        return list(table)
    except csv.Error as error:
        raise ValueError(f"data.path: {path}, line {table.line_num}: is no CSV: {error}") from None


def _csv_row(rows: Sequence[dict[str | None, Any]], number: int) -> dict[str | None, Any]:
    if None in rows[number]:
        raise BadRowError(f"has {len(rows[number][None])} cells more than there are columns: correct or remove it")
    return rows[number]


def _read_json(path: Path) -> list[Any]:
    rows = read_json(path)
    if not isinstance(rows, list):
        raise ValueError(f"data.path: {path} holds {type(rows).__name__}, not a list of rows")
    return rows


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _json_row(rows: Sequence[Any], number: int) -> Any:
    return _encodable(rows[number])


def _from_hub(path: str, subset: str | None) -> list[RowSource]:
    datasets = require("datasets", "mmpeft[data]")
    name, _, revision = path.partition("@")
    try:
        tables = datasets.load_dataset(name, subset, revision=revision or None)
    except Exception as error:  # whatever a reader of one of its many formats meets with
        reason = _first_line(error)
        raise ValueError(f"data.path: {path!r} could not be fetched: {reason} (offline? Give a local path)") from error
    unknown = [split for split in tables if split.lower() not in ALIASES]
    known = {split: table for split, table in tables.items() if split not in unknown}
    if not known:
        raise ValueError(f"data.path: {path!r} has only splits {listed(unknown)}; train, validation or test are wanted")
    return [RowSource(split, ALIASES[split.lower()], len(table), table.__getitem__) for split, table in known.items()]
