"""What a renewal learns from, taken once: later feedback and contracts are for the next one.

A resumed renewal sees the same: labels are copied without those in quarantine, feedback with its salt, so that
pseudonyms stay those of the people. The library is not copied; its contracts are listed by their hashes.
"""

import json
import os
import shutil
import sqlite3
from collections.abc import Iterable
from contextlib import closing
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from corpora.types import Contract
from program.feedback.people import salt_path
from program.feedback.store import FeedbackStore
from program.releases.store import ReleaseStore
from program.releases.types import Release
from program.renewal.config import RenewalConfig
from program.renewal.home import Home, renewals
from program.renewal.labelled import count_new, read_trusted, snapshot
from program.renewal.triggers import Seen
from program.unlabelled import read_unlabelled


def look(home: Home, config: RenewalConfig, drifted: tuple[str, str] | None = None) -> Seen:
    """What there is now, beside what the last renewal that ended had taken."""
    last = next((told for told in reversed(renewals(home)) if "inputs" in told), None)
    then = last["inputs"] if last else {}
    labelled, releases = read_trusted(config.corpus, home.path), ReleaseStore.open(home.releases)
    live, tried = releases.live(), None
    if drifted is not None and live is not None:
        tried = _drift_tried(home, drifted[0], _lived_as(releases, live))
    return Seen(
        released=live is not None,
        labels=count_new(labelled, then.get("labelled", {}).values()),
        feedback=count_events(home.feedback),
        feedback_then=then.get("feedback", 0),
        contracts=hashes_of(contracts_of(config)),
        contracts_then=frozenset(then.get("contracts", ())),
        renewed=datetime.fromisoformat(then["at"]) if then else None,
        drifted=drifted,
        drift_tried=tried,
    )


def _lived_as(releases: ReleaseStore, release: Release) -> set[str]:
    """The ids under which a release's program has been live: its own, and those that it refreshes (refreshing.py)."""
    ids = {release.id}
    while refreshed := release.manifest["lineage"].get("refreshes"):
        release = releases.get(refreshed)
        ids.add(release.id)
    return ids


def _drift_tried(home: Home, kind: str, live: set[str]) -> datetime | None:
    """When the last renewal for this kind of drift that started from what is live took its inputs."""
    for told in reversed(renewals(home)):
        if told.get("inputs", {}).get("live") in live:
            begun = json.loads((home.renewals / told["id"] / "begun.json").read_text(encoding="utf-8"))
            if begun["cause"] and begun["cause"][0] == kind:
                return datetime.fromisoformat(told["inputs"]["at"])
    return None


def take(home: Home, config: RenewalConfig, folder: Path, now: datetime) -> dict[str, Any]:
    """Copy labels and feedback into `folder`, list the contracts, name the live release: the stage "inputs"."""
    live = ReleaseStore.open(home.releases).live()
    copied = copy_feedback(home.feedback, folder / "feedback.db")
    return {
        "at": now.isoformat(timespec="seconds"),
        "live": None if live is None else live.id,
        "labelled": snapshot(config.corpus, home.path, folder / "corpus.json"),
        "feedback": count_events(folder / "feedback.db") if copied else 0,
        "contracts": sorted(hashes_of(contracts_of(config))),
    }


def count_events(store: Path) -> int:
    """How many things people have said that were not withdrawn; 0 where there is no store."""
    if not store.is_file():
        return 0
    with FeedbackStore.open(store) as opened:
        return sum(1 for _ in opened.events())


def copy_feedback(store: Path, target: Path) -> bool:
    """A copy of the store as it is at one moment, with its salt, whole or not at all; False where there is no store."""
    if not store.is_file():
        return False
    beside = target.with_name(f".{target.name}.partial")
    beside.unlink(missing_ok=True)
    # SQLite's own backup: the store may be written to meanwhile, and its last rows may stand in the -wal file.
    with closing(sqlite3.connect(store)) as source, closing(sqlite3.connect(beside)) as copy:
        source.backup(copy)
    if salt_path(store).is_file():
        shutil.copy(salt_path(store), salt_path(target))
    os.replace(beside, target)
    return True


def hashes_of(contracts: Iterable[Contract]) -> frozenset[str]:
    """SHA-256 of each contract's text."""
    return frozenset(sha256(contract.text.encode()).hexdigest() for contract in contracts)


def contracts_of(config: RenewalConfig) -> tuple[Contract, ...]:
    """The contracts that nobody has labelled, if the config names any. CorpusError, StoreError."""
    return () if config.contracts is None else read_unlabelled(config.contracts)
