"""Traces that are kept, in one SQLite file, bounded in rows and age; many processes and threads may use it.

    with TraceStore.open("traces.db", TracePolicy(sample=0.5)) as traces:
        traces.record(trace)
        window = list(traces.between("2026-11-01", "2026-12-01", release="runs/mine", shadow=False))

Recording never fails the answer that it is about. Not handled: a clock that runs far ahead; what it calls old is
removed.
"""

import json
import logging
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from corpora.labels.tables import Layout, Tables
from modules.index_files import StoreError
from program.feedback.log import utc_now
from program.feedback.people import read_salt, salt_path
from program.feedback.tables import for_its_owner
from program.traces.policy import TracePolicy, is_sampled, kept
from program.traces.types import Trace

logger = logging.getLogger(__name__)

# An answer waits no longer than this for another process that writes, and not at all once that was in vain.
_BUSY_MS = 1000
_PRUNE_EVERY = 64
_BATCH = 500
_COLUMNS = ("id", "at", "release", "shadow")
_TUPLES = ("scores", "passages")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS traces (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, at TEXT NOT NULL, release TEXT NOT NULL, shadow INTEGER NOT NULL,
    body TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS traces_by_time ON traces (at);
"""
TRACES = Layout(
    noun="trace store",
    row="trace",
    application=0x45565452,  # "EVTR"
    version=1,
    schema=_SCHEMA,
    error=StoreError,
)


class TraceStore:
    """Traces in the order they came. `lost` counts those that could not be written since the store was opened."""

    def __init__(
        self, tables: Tables, policy: TracePolicy, now: Callable[[], str], salt: str, rng: random.Random | None
    ) -> None:
        """Use `open`."""
        self.policy, self.now, self.lost = policy, now, 0
        self._tables, self._salt, self._rng = tables, salt, rng
        # What was left too old is removed with the first trace.
        self._lock, self._since_prune, self._busy_ms = threading.Lock(), _PRUNE_EVERY, _BUSY_MS

    @classmethod
    def open(
        cls,
        path: str | Path,
        policy: TracePolicy = TracePolicy(),  # noqa: B008  it is frozen
        *,
        now: Callable[[], str] = utc_now,
        rng: random.Random | None = None,
    ) -> Self:
        """Open the store at `path`, or make one where there is no file; `now` is the clock.

        `rng` decides what is sampled, in the place of the ids' hash. The secret that questions are hashed with stands
        beside the file, as `<name>.salt`. StoreError if the file is something else, is damaged, cannot be written, or
        was made by a newer version, and where its secret is gone.
        """
        path = Path(path)
        tables = Tables.open(for_its_owner(path), TRACES, shared=True)
        try:
            # A trace is evidence, no promise: NORMAL writes without waiting for the disk, loses the last ones when the
            # machine (not the process) goes down, and leaves the file whole. What is pruned is wiped.
            for setting in ("synchronous = NORMAL", "secure_delete = ON", f"busy_timeout = {_BUSY_MS}"):
                tables.rows(f"PRAGMA {setting}")
            return cls(tables, policy, now, _salt(tables), rng)
        except BaseException:
            tables.close()
            raise

    @property
    def path(self) -> Path:
        """Where the file stands."""
        return self._tables.path

    def close(self) -> None:
        """Let go of the file; the last to do so leaves one file, without SQLite's `-wal` beside it."""
        with self._lock:
            self._tables.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def record(self, trace: Trace) -> Trace | None:
        """Keep the trace as the policy says; returns what was kept, None where it was not sampled or is lost.

        Raises nothing: what cannot be written is counted in `lost`, and the first time logged.
        """
        try:
            with self._lock:
                return self._record(trace)
        except Exception as error:  # whatever it is: somebody waits for the answer, and it is there
            self.lose(error)
            return None

    def lose(self, error: Exception) -> None:
        """Count a trace that could not be made or written; the first is logged."""
        with self._lock:
            self.lost += 1
            first = self.lost == 1
            try:
                self._wait(0)
            except Exception:  # closed: there is nothing to wait for
                logger.debug("the trace store cannot be used", exc_info=True)
        if first:
            logger.warning("traces are being lost, answers are not: %s", error)

    def between(
        self,
        start: str | None = None,
        stop: str | None = None,
        release: str | None = None,
        shadow: bool | None = None,
    ) -> Iterator[Trace]:
        """Traces from `start` (included) to `stop` (excluded), in the order they came; None for no bound.

        Times are ISO 8601, in UTC where they name no zone: ValueError for others.
        """
        where, values = ["seq > ?"], [0]
        for condition, value in (
            ("at >= ?", None if start is None else _utc(start)),
            ("at < ?", None if stop is None else _utc(stop)),
            ("release = ?", release),
            ("shadow = ?", shadow),
        ):
            if value is not None:
                where.append(condition)
                values.append(value)
        sql = f"SELECT * FROM traces WHERE {' AND '.join(where)} ORDER BY seq LIMIT {_BATCH}"
        return self._paged(sql, values)

    def count(self) -> int:
        """How many traces there are."""
        with self._lock:
            return self._tables.rows("SELECT count(*) AS n FROM traces")[0]["n"]

    def prune(self) -> int:
        """Remove all that is beyond the policy's rows and age; returns how many. `record` does so, too, bit by bit.

        Between two calls the file holds at most a tenth more rows than the policy's, and 64 at most, for each process.
        """
        n = 0
        while True:
            # In batches: another process waits for no more than one.
            with self._lock:
                removed = self._prune_batch()
            n += removed
            if not removed:
                return n

    def _record(self, trace: Trace) -> Trace | None:
        drawn = self._rng is not None and trace.error is None
        if not (self._rng.random() < self.policy.sample if drawn else is_sampled(trace, self.policy)):
            return None
        trace = kept(trace, self.policy, self._salt)
        with self._tables.transaction():
            self._tables.insert("traces", _row(trace))
        self._wait(_BUSY_MS)
        self._since_prune += 1
        if self._since_prune >= min(_PRUNE_EVERY, max(1, self.policy.max_rows // 10)):
            self._since_prune = 0
            try:
                self._prune_batch()
            except StoreError as error:
                # The trace is there; what is too much goes the next time.
                logger.debug("traces could not be pruned: %s", error)
        return trace

    def _wait(self, busy_ms: int) -> None:
        if self._busy_ms != busy_ms:
            self._tables.rows(f"PRAGMA busy_timeout = {busy_ms}")
            self._busy_ms = busy_ms

    def _prune_batch(self) -> int:
        # By the last row's number, not by counting: rows go from the oldest on, so that no more than these are left.
        last = self._tables.rows("SELECT max(seq) AS seq FROM traces")[0]["seq"] or 0
        oldest = _utc(self.now(), timedelta(days=self.policy.max_age_days))
        n = 0
        for condition, value in (("seq <= ?", last - self.policy.max_rows), ("at < ?", oldest)):
            some = f"SELECT seq FROM traces WHERE {condition} LIMIT {_BATCH}"
            if self._tables.rows(some, value):
                with self._tables.transaction():
                    n += len(self._tables.rows(f"DELETE FROM traces WHERE seq IN ({some}) RETURNING seq", value))
        return n

    def _paged(self, sql: str, values: list[Any]) -> Iterator[Trace]:
        # Nothing stays open between pages: a read left open would keep SQLite from emptying the file beside this one.
        while True:
            with self._lock:
                rows = self._tables.rows(sql, *values)
            yield from map(_trace_of, rows)
            if len(rows) < _BATCH:
                return
            values = [rows[-1]["seq"], *values[1:]]


def _salt(tables: Tables) -> str:
    """The secret beside the file, made for a file that is new."""
    path = salt_path(tables.path)
    if not path.exists() and tables.rows("SELECT 1 FROM traces LIMIT 1"):
        # With another one, questions that were asked before would count as new.
        raise StoreError(f"{path} is gone, which questions are hashed with. Put it back, or begin with a new file.")
    return read_salt(tables.path, make=True)


def _row(trace: Trace) -> dict[str, Any]:
    values = asdict(trace)
    row = {name: values.pop(name) for name in _COLUMNS}
    # As ASCII: half a character (a lone surrogate) must not cost the trace.
    return row | {"shadow": int(trace.shadow), "body": json.dumps(values, allow_nan=False)}


def _trace_of(row: Any) -> Trace:
    body = json.loads(row["body"])
    body |= {name: tuple(body[name]) for name in _TUPLES}
    body["spans"] = tuple((start, end) for start, end in body["spans"])
    return Trace(**body, **{name: row[name] for name in _COLUMNS} | {"shadow": bool(row["shadow"])})


def _utc(at: str, before: timedelta = timedelta(0)) -> str:
    """The time as the column has it, so that the order of texts is that of times."""
    time = datetime.fromisoformat(at)
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)
    return (time - before).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
