"""What a label store holds out: contracts for validation and test, and all that is nearly the same as one of them.

The search for near-duplicates is over the texts of all the store, once a call, and outside the lock on the file; its
result is a row of `held_out` for each text, so that a label is checked by looking up its contract.
"""

import json
import sqlite3
from collections.abc import Iterable, Mapping

from corpora.errors import CorpusError
from corpora.labels.rows import checked_contracts
from corpora.labels.tables import Tables
from corpora.labels.types import Draft
from corpora.splits import near_duplicate_groups
from corpora.types import Contract

_NEAR_DUPLICATE_JACCARD = 0.8
_KNOWN = "SELECT 1 FROM texts WHERE sha256 = ?"


def refuse_overlap(tables: Tables, contracts: Iterable[Contract]) -> None:
    """CorpusError that names each of the contracts that is held out, or is a near-duplicate of one that is."""
    given = checked_contracts(contracts)
    held = {row["sha256"]: row for row in tables.rows("SELECT * FROM held_out JOIN texts USING (sha256)")}
    why = {sha: _why(tables, row["side"], row["near"]) for sha, row in held.items()}
    # What the store holds was searched for when it came, and when something was held out: only others are looked at.
    new = {sha: contract.text for contract, sha in given.values() if not tables.rows(_KNOWN, sha)}
    for group in _groups({sha: row["text"] for sha, row in held.items()} | new) if held and new else ():
        if near := next((sha for sha in group if sha in held), None):
            why |= {sha: _why(tables, held[near]["side"], near) for sha in group if sha not in held}
    if found := [f"{contract.id!r} ({why[sha]})" for contract, sha in given.values() if sha in why]:
        raise CorpusError(
            f"{len(found)} of {len(given)} contracts are held out: {', '.join(sorted(found))}. A program that "
            "learned from them could not be judged on them; take them out of the set."
        )


def place(tables: Tables, given: Mapping[str, tuple[Contract, str]], side: str | None) -> None:
    """Keep contracts, and hold out those that have to be. The search for near-duplicates runs outside the lock."""
    texts = {sha: contract.text for contract, sha in given.values()}
    while True:
        seen = _state(tables)
        names = {sha: contract.id for contract, sha in given.values()}
        held = _newly_held(tables, texts, dict.fromkeys(texts, side) if side else {}, names)
        with tables.transaction():
            if _state(tables) != seen:
                continue  # another process came between: what was found may no longer be all
            for contract, sha in given.values():
                _keep_contract(tables, contract, sha)
            _refuse_trained(tables, held, names)
            for sha, (on, near) in held.items():
                tables.insert("held_out", {"sha256": sha, "side": on, "near": near})
            return


def _newly_held(
    tables: Tables, texts: Mapping[str, str], asked: Mapping[str, str], names: Mapping[str, str]
) -> dict[str, tuple[str, str | None]]:
    """Hash of each text that is to be held out and is not yet: its side, and which text it is near to."""
    before = {row["sha256"]: row["side"] for row in tables.rows("SELECT sha256, side FROM held_out")}
    known = {row["sha256"] for row in tables.rows("SELECT sha256 FROM texts")}
    for sha, side in asked.items():
        if before.get(sha, side) != side:
            raise CorpusError(_both_sides(tables, [sha], names, {before[sha], side}))
    if not (before or asked) or (texts.keys() <= known and asked.keys() <= before.keys()):
        return {}
    held = before | dict(asked)
    new: dict[str, tuple[str, str | None]] = {}
    for group in _groups({row["sha256"]: row["text"] for row in tables.rows("SELECT * FROM texts")} | dict(texts)):
        inside = [sha for sha in group if sha in held]
        sides = {held[sha] for sha in inside}
        if len(sides) > 1:
            raise CorpusError(_both_sides(tables, group, names, sides))
        for sha in group if inside else ():
            if sha not in before:
                new[sha] = (held[inside[0]], None if sha in asked else inside[0])
    return new


def _both_sides(tables: Tables, shas: Iterable[str], names: Mapping[str, str], sides: Iterable[str]) -> str:
    listed = ", ".join(repr(_name(tables, sha, names)) for sha in shas)
    return (
        f"{listed} would be held out for {' and '.join(sorted(sides))} at once: near-duplicates are on one side. "
        "Give them one side, or leave out what joins them."
    )


def _refuse_trained(tables: Tables, held: Mapping[str, tuple[str, str | None]], names: Mapping[str, str]) -> None:
    sql = "SELECT 1 FROM live WHERE sha256 = ? AND source = 'synthetic' LIMIT 1"
    trained = [
        f"{_name(tables, sha, names)!r}" + (f" (near-duplicate of {_name(tables, near, names)!r})" if near else "")
        for sha, (_, near) in held.items()
        if tables.rows(sql, sha)
    ]
    if trained:
        raise CorpusError(
            f"synthetic labels train on {', '.join(sorted(trained))}, so it cannot be held out any more. Hold out "
            "other contracts, or take those labels back (`retract`) and train anew."
        )


def _keep_contract(tables: Tables, contract: Contract, sha: str) -> None:
    known = tables.rows("SELECT sha256 FROM contracts WHERE id = ?", contract.id)
    if known and known[0]["sha256"] != sha:
        raise CorpusError(
            f"{tables.path} has a contract {contract.id!r} with another text. An id is one text's: give the new "
            "text an id of its own."
        )
    if not known:
        values = {"sha256": sha, "text": contract.text, "n_chars": len(contract.text)}
        tables.insert("texts", values, "ON CONFLICT (sha256) DO NOTHING")
        places = json.dumps([[place.start, place.page, place.paragraph] for place in contract.places])
        tables.insert("contracts", {"id": contract.id, "sha256": sha, "places": places})


def refuse_held(tables: Tables, draft: Draft, row: sqlite3.Row, source: str) -> None:
    """CorpusError for a synthetic label on a contract that is held out; `row` is the contract's."""
    if source == "synthetic" and row["side"] is not None:
        question = draft.label.question
        why = _why(tables, row["side"], row["near"])
        raise CorpusError(
            f"the synthetic label {question.id!r} is on the contract {question.contract_id!r} ({why}). "
            "Leave held-out contracts out of what is labelled (`refuse_overlap`)."
        )


def _why(tables: Tables, side: str, near: str | None) -> str:
    return f"near-duplicate of {_name(tables, near)!r}, held out for {side}" if near else f"held out for {side}"


def _name(tables: Tables, sha: str, names: Mapping[str, str] | None = None) -> str:
    rows = tables.rows("SELECT id FROM contracts WHERE sha256 = ? ORDER BY seq LIMIT 1", sha)
    return (names or {}).get(sha) or (rows[0]["id"] if rows else sha)


def _state(tables: Tables) -> tuple[int, ...]:
    sql = "SELECT (SELECT count(*) FROM texts), (SELECT count(*) FROM contracts), (SELECT count(*) FROM held_out)"
    return tuple(tables.rows(sql)[0])


def _groups(texts: Mapping[str, str]) -> list[tuple[str, ...]]:
    return near_duplicate_groups([Contract(sha, text) for sha, text in texts.items()], _NEAR_DUPLICATE_JACCARD)
