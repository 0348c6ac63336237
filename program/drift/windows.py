"""Windows: stretches of served traffic as arrays, and the one file that each is kept in.

The file is an .npz of arrays, one of them JSON text (names and words); it is read without pickle. Not handled: windows
beyond memory (a million observations of 384 numbers are 3 GB).
"""

import hashlib
import json
import os
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import chain
from pathlib import Path

import numpy as np

from program.drift.types import DriftError, Observation

_SCORES = ("retrieval_score", "confidence", "p_answered", "judge_score", "rating")
_SHARES = ("confidence", "p_answered", "rating")
_EMBEDDINGS = ("question_embedding", "passage_embedding")
_ARRAYS = ("at", "contract", "category", "abstained", *_EMBEDDINGS, *_SCORES)
_NAMES = ("contracts", "categories")


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """N observations in order of time; what was not measured is nan here.

    `at` (N,) seconds; `contract` (N,) numbers into `contracts`; `category` (N,) numbers into `categories`, -1 for
    none; `abstained` (N,) bool; embeddings (N, D), D 0 where nobody has one; scores (N,); `words` N tuples.
    """

    at: np.ndarray
    contract: np.ndarray
    contracts: tuple[str, ...]
    category: np.ndarray
    categories: tuple[str, ...]
    abstained: np.ndarray
    question_embedding: np.ndarray
    passage_embedding: np.ndarray
    retrieval_score: np.ndarray
    confidence: np.ndarray
    p_answered: np.ndarray
    judge_score: np.ndarray
    rating: np.ndarray
    words: tuple[tuple[str, ...], ...]

    @property
    def n(self) -> int:
        """How many observations."""
        return len(self.at)

    @property
    def n_contracts(self) -> int:
        """How many contracts they are of."""
        return len(np.unique(self.contract))

    @property
    def start(self) -> float:
        """When the first was made."""
        return float(self.at[0])

    @property
    def stop(self) -> float:
        """When the last was made: both ends belong to the window."""
        return float(self.at[-1])


def window_of(observations: Sequence[Observation]) -> Window:
    """The observations as a window, in order of time; DriftError for none, nan, infinity, or what is out of range."""
    rows = sorted(observations, key=lambda row: row.at)
    contracts, contract = _contract_numbers([row.contract_id for row in rows])
    categories = sorted({row.category for row in rows if row.category is not None})
    number = {name: i for i, name in enumerate(categories)}
    return _checked(
        Window(
            at=np.array([row.at for row in rows], dtype=float),
            contract=contract,
            contracts=contracts,
            category=np.array([-1 if row.category is None else number[row.category] for row in rows], dtype=int),
            categories=tuple(categories),
            abstained=np.array([row.abstained for row in rows], dtype=bool),
            **{name: _matrix(name, [getattr(row, name) for row in rows]) for name in _EMBEDDINGS},
            **{name: _column(name, [getattr(row, name) for row in rows]) for name in _SCORES},
            words=tuple(row.words for row in rows),
        )
    )


def between(window: Window, start: float, stop: float) -> Window:
    """The observations made at `start` or later and before `stop`; DriftError where there are none."""
    first, last = np.searchsorted(window.at, [start, stop])
    if first >= last:
        raise DriftError(f"nothing was observed from {start} to {stop}; the window has {window.start} to {window.stop}")
    cut = {name: getattr(window, name)[first:last] for name in (*_ARRAYS, "words")}
    return Window(**cut, contracts=window.contracts, categories=window.categories)


def window_id(window: Window) -> str:
    """32 hex characters for the span of a window: when each of its observations was made."""
    return hashlib.sha256(np.ascontiguousarray(window.at).tobytes()).hexdigest()[:32]


def digest(window: Window) -> str:
    """32 hex characters for all that a window holds."""
    total = hashlib.sha256(_json_of(window).encode())
    for name in _ARRAYS:
        total.update(np.ascontiguousarray(getattr(window, name)).tobytes())
    return total.hexdigest()[:32]


def save_window(window: Window, path: str | Path) -> None:
    """Write the window to one .npz: beside, flushed to the disk, then in its place."""
    path = Path(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    text = np.frombuffer(_json_of(window).encode(), dtype=np.uint8)
    with beside.open("wb") as file:
        np.savez_compressed(file, json=text, **{name: getattr(window, name) for name in _ARRAYS})
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def load_window(path: str | Path) -> Window:
    """What `save_window` wrote; DriftError for anything else."""
    try:
        with np.load(Path(path), allow_pickle=False) as file:
            arrays = {name: file[name] for name in _ARRAYS}
            told = json.loads(file["json"].tobytes())
        names = {name: tuple(told[name]) for name in _NAMES}
        return _checked(Window(**arrays, **names, words=tuple(tuple(row) for row in told["words"])))
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DriftError(f"{path} holds no window ({error!r}). Collect the window anew and save it.") from error


def _contract_numbers(ids: Sequence[str]) -> tuple[tuple[str, ...], np.ndarray]:
    names = sorted({one for one in ids if one})
    number = {name: i for i, name in enumerate(names)}
    # A question to no contract is a unit of its own.
    alone = iter(range(len(names), len(names) + len(ids)))
    numbers = np.array([number[one] if one else next(alone) for one in ids], dtype=int)
    return (*names, *[""] * sum(not one for one in ids)), numbers


def _json_of(window: Window) -> str:
    return json.dumps({**{name: getattr(window, name) for name in _NAMES}, "words": window.words}, ensure_ascii=False)


def _column(name: str, values: Sequence[float | None]) -> np.ndarray:
    known = [value for value in values if value is not None]
    _refuse_faults(name, np.array(known, dtype=float))
    return np.array([np.nan if value is None else value for value in values], dtype=float)


def _matrix(name: str, rows: Sequence[Sequence[float] | None]) -> np.ndarray:
    sizes = {len(row) for row in rows if row is not None}
    if len(sizes) > 1:
        raise DriftError(f"{name} has {sorted(sizes)} numbers; embed all observations of a window by one model")
    matrix = np.full((len(rows), sizes.pop() if sizes else 0), np.nan, dtype=np.float32)
    for place, row in enumerate(rows):
        if row is not None:
            matrix[place] = row
            _refuse_faults(name, matrix[place])
    return matrix


def _refuse_faults(name: str, values: np.ndarray) -> None:
    if not np.isfinite(values).all():
        raise DriftError(f"{name} holds nan or infinity; give None where nothing was measured")
    if name in _SHARES and len(values) and not 0 <= values.min() <= values.max() <= 1:
        raise DriftError(f"{name} runs from {values.min()} to {values.max()}; it is given in [0, 1]")


def _checked(window: Window) -> Window:
    """The window, if its parts belong together."""
    if not window.n:
        raise DriftError("a window needs at least one observation; none were given")
    lengths = {field.name: len(getattr(window, field.name)) for field in fields(window) if field.name not in _NAMES}
    if set(lengths.values()) != {window.n}:
        raise DriftError(f"the parts of a window differ in length: {lengths}")
    if not np.isfinite(window.at).all() or (np.diff(window.at) < 0).any():
        raise DriftError("`at` must be finite seconds in order of time; mend the observations' clock")
    for name, low, names in (("contract", 0, window.contracts), ("category", -1, window.categories)):
        numbers = getattr(window, name)
        if numbers.min() < low or numbers.max() >= len(names):
            raise DriftError(f"{name} has numbers {numbers.min()} to {numbers.max()} for {len(names)} names")
    for name in _SCORES:
        values = getattr(window, name)
        _refuse_faults(name, values[~np.isnan(values)])
    for name in _EMBEDDINGS:
        matrix = getattr(window, name)
        rows = matrix[~np.isnan(matrix).all(axis=1)] if matrix.ndim == 2 and matrix.shape[1] else matrix[:0]
        _refuse_faults(name, rows)
    if not all(isinstance(word, str) for word in chain.from_iterable(window.words)):
        raise DriftError("words must be text; hash them if they are not to be kept")
    return window
