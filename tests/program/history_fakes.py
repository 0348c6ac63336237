"""A home folder as a year of renewals leaves it, made without a model; every part by the store that keeps it."""

import json
import math
import random
import shutil
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path

from corpora.cuad import write_cuad
from corpora.synthetic import write_corpus
from program.drift.signals import SIGNALS
from program.drift.types import DriftReport, SignalResult, report_to_json
from program.feedback.store import FeedbackStore
from program.feedback.types import Said
from program.forgetting.skills import Mark, SuiteStore
from program.gate.types import Check, Decision, GateRules, to_json
from program.releases.store import ReleaseStore
from program.renewal.home import Home
from program.runs import write_json
from program.traces.store import TraceStore
from program.traces.types import Trace
from tests.program.releases_fakes import write_run

NOW = datetime(2031, 6, 2, 8, 0, tzinfo=UTC)
# Renewal by renewal: how it ended, its score, and what set it off.
YEAR = (
    ("promoted", 0.708, "no release is live yet"),
    ("promoted", 0.761, "52 new events of feedback, 50 are enough"),
    ("refused", 0.742, "24 new contracts, 20 are enough"),
    ("promoted", 0.803, "question_embedding: questions moved away from the reference"),
    ("kept", None, "the last renewal was 2030-12-20"),
    ("promoted", 0.831, "61 new events of feedback, 50 are enough"),
    ("failed", None, "55 new events of feedback, 50 are enough"),
    ("undecided", 0.829, "55 new events of feedback, 50 are enough"),
    ("promoted", 0.846, "22 new contracts, 20 are enough"),
)
TOML = 'corpus = "labelled.json"\nfrozen = "frozen.json"\ncheck_hours = 24\n'


class Clock:
    """A clock that is set: it tells the time as each store asks for it."""

    def __init__(self, at=NOW):
        self.at = at

    def __call__(self):
        return self.at

    def text(self):
        return self.at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def make_home(path: Path, *, days: int = 240, a_day: int = 6, year=YEAR) -> Home:
    """A home with `days` of traffic, and a renewal for each row of `year`."""
    home, clock, rng = Home(path), Clock(), random.Random(3)
    path.mkdir(parents=True, exist_ok=True)
    (path / "evergreen.toml").write_text(TOML)
    write_cuad(write_corpus(["ashgrove"], 2, seed=1), path / "labelled.json")
    write_cuad(write_corpus(["juniper"], 2, seed=2), path / "frozen.json")
    releases = ReleaseStore.open(home.releases, now=clock)
    live, served = None, []
    for number, (outcome, score, why) in enumerate(year, start=1):
        clock.at = NOW - timedelta(days=290 - 30 * number, hours=3)
        live = renewal(home, releases, clock, number, outcome, score, why, live)
        served = served if live in served or live is None else [*served, live]
    traffic(home, clock, rng, days, a_day, live or "")
    feedback(home, clock, rng)
    for release, first, last, alarms in zip(served[-2:], (111, 19), (22, 1), ((40, 41, 42), ()), strict=False):
        drift(home, release, rng, first, last, alarms)
    looked = (NOW - timedelta(hours=5)).isoformat()
    write_json(path / "watch.json", {"looked": looked, "drift": "nothing moved", "renewal": None, "error": ""})
    return home


def renewal(home, releases, clock, number, outcome, score, why, live, skills=("house juniper", "payment terms")):
    """One renewal with everything that it leaves; the id of what is live afterwards."""
    folder = home.renewals / f"{number:04d}"
    (folder / "stages").mkdir(parents=True)
    (folder / "calls").mkdir()
    spent = {"inputs": 0.4, "plan": 0.01, "candidate": 300 + 90 * number, "skills": 42.0, "gate": 3.0, "release": 0.7}
    for name, seconds in spent.items():
        write_json(folder / "stages" / f"{name}.json", {"made": {}, "seconds": seconds})
    (folder / "calls" / "paid_calls").write_text(f"{40 * (number % 3)}\n")
    told = {"outcome": outcome, "why": "", "recipe": "r -> p -> s" if number == 1 else "s -> a", "reasons": [why]}
    if outcome == "failed":
        told["why"] = "EvaluationError: 41 of 336 calls failed; mend the LM and renew again"
    if score is not None:
        run = scored_run(home.path.parent / f"{home.path.name}-run{number}", number, score)
        release = releases.add(run, parents=[live] if live else [], decision=f"d{number}")
        told |= {"release": release.id, "decision": f"d{number}"}
        gain = {"undecided": 0.006, "refused": -0.008}.get(outcome, 0.031)
        decision = decided(outcome, gain, skills if number > 1 else (), lost=outcome == "refused")
        told["why"] = "; ".join(decision.reasons)
        (folder / "decision.json").write_text(to_json(decision))
        (folder / "gate.html").write_text("<!doctype html><title>gate</title>")
        if outcome == "promoted":
            releases.promote(release.id, told["why"], by="renewal")
            live = release.id
            if number == 1:
                for i, name in enumerate(skills):
                    freeze(home, name, release.id, 0.74 + 0.1 * i, seed=i)
    told |= {"seconds": spent, "ended": clock.at.isoformat()}
    write_json(folder / "outcome.json", told)
    return live


def scored_run(folder, number, score):
    """A run whose kept stage has this score, and its base a little less; from the sixth on another test set."""
    run = write_run(folder, number)
    summary = json.loads((run / "summary.json").read_text())
    stage = summary["stages"][0]
    stage["scores"]["exact_match"] = interval(score)
    base = stage | {"stage": "base", "scores": {"exact_match": interval(score - 0.031)}}
    (run / "summary.json").write_text(json.dumps(summary | {"stages": [base, stage]}))
    data = json.loads((run / "data.json").read_text())
    data["files"]["test_corpus"] = {"sha256": "aa" if number < 6 else "bb", "bytes": 10}
    (run / "data.json").write_text(json.dumps(data))
    return run


def servable(run, embedder):
    """Give a run of `write_run` what serving looks at: the bundled base's digest, and an index of a contract."""
    from modules.retrieval_settings import RetrievalSettings
    from modules.retriever import PassageIndex
    from optimizers.local_lm.sealed import seal
    from optimizers.local_lm.weights import BUNDLED, folder_digest

    program = run / "program"
    told = json.loads((program / "local_lm.json").read_text())
    (program / "local_lm.json").write_text(json.dumps(told | {"digest": folder_digest(BUNDLED["evergreen-base"])}))
    (program / "COMPLETE").unlink()
    seal(program, {"kind": "program"})
    shutil.rmtree(run / "index")
    contracts = write_corpus(["ashgrove"], 1, seed=4).contracts
    PassageIndex.build(contracts, folder=run / "index", embedder=embedder, progress=False).close()
    told = {"index": "index", "embedder": None, "settings": asdict(RetrievalSettings()), "cut": {"max_chars": 600}}
    (run / "retrieval.json").write_text(json.dumps(told))
    return run


def interval(mean):
    return {"mean": mean, "low": mean - 0.03, "high": mean + 0.028, "n": 336, "n_clusters": 12}


def decided(outcome, gain, skills, lost):
    """A decision with a gain and a check for each skill; the first one is lost where `lost` says so."""
    passed = {"promoted": True, "refused": False}.get(outcome)
    why = {True: "better", False: "not shown to be better", None: "412 questions; 520 are needed: label 108 more"}[
        passed
    ]
    checks = [Check("gain", passed, gain, gain - 0.02, gain + 0.02, (0.0, None), why, n=336)]
    for i, name in enumerate(skills):
        kept, change = not (lost and i == 0), (-0.041 if lost and i == 0 else 0.004 + 0.006 * i)
        told = "kept" if kept else "lost, −4.1 points against its score at the time"
        checks.append(
            Check("skill", kept, change, change - 0.012, change + 0.012, (-0.02, None), told, n=24, about=name)
        )
    return Decision(
        verdict={"promoted": "promote", "refused": "refuse"}.get(outcome, "undecided"), checks=tuple(checks), n=336,
        n_needed=300, reasons=(f"{100 * gain:+.1f} points over the incumbent: {why}",), id="d", incumbent="base",
        candidate="s -> a", rules=GateRules(), contracts=("c1", "c2"), looked=passed is not None, level=0.996,
        discordance=0.1, design_effect=1.4, n_decisions=1,
    )  # fmt: skip


def freeze(home, name, release, score, seed):
    """A review skill in the suite, with as many marks as its corpus has questions."""
    corpus = write_corpus(["juniper"], 1, seed=20 + seed)
    n = len(corpus.labels)
    marks = [
        Mark(name, label.question.id, label.question.contract_id, float(i < score * n))
        for i, label in enumerate(corpus.labels)
    ]
    SuiteStore(home.skills).add(name, corpus, marks, release=release, labelled_by="person")


def traffic(home, clock, rng, days, a_day, release):
    """Answers day by day, fewer on weekends, with a failed call now and then."""
    with TraceStore.open(home.traces, now=clock.text) as store:
        for back in range(days - 1, -1, -1):
            clock.at = NOW - timedelta(days=back, hours=1)
            for i in range(a_day // (3 if clock.at.weekday() > 4 else 1)):
                failed = rng.random() < 0.012
                found = None if failed else rng.random() < 0.4 + 0.1 * math.sin(back / 40)
                store.record(Trace(
                    id=f"{back}-{i}", at=clock.text(), release=release, question="Which law governs?",
                    contract_id="c1", found=found, n_quotes=2 if found else 0, n_ungrounded=None if failed else 0,
                    confidence=0.6, latency_s=None if failed else 0.6 + 0.3 * rng.random(),
                    error="TimeoutError: too long" if failed else None, shadow=i == 5 and back < 30,
                ))  # fmt: skip


def feedback(home, clock, rng):
    """Nine months of thumbs, stars, corrections and choices on one contract."""
    contract = write_corpus(["juniper"], 1, seed=9).contracts[0]
    with FeedbackStore.open(home.feedback, now=clock.text) as store:
        clock.at = NOW - timedelta(days=266)
        asked = store.ask("Which law governs?", contract)
        left, right = (store.answer(asked, Said(answer, True)).id for answer in ("Ohio", "Utah"))
        both = store.offer(left, right).id
        for month in range(9):
            clock.at = NOW - timedelta(days=265 - 30 * month)
            for i in range(6 + month % 3):
                up = rng.random() < 0.55 + 0.04 * month
                store.rate(left, thumbs="up" if up else "down", stars=4 if i == 0 else None, by="Ada")
            for _ in range(1 + month % 2):
                store.correct(left, found=False, by="Ben")
            store.choose(both, "left", by="Cleo")


def drift(home, release, rng, first, last, alarms=()):
    """Daily checks of one release, `first` to `last` days ago: a few signals unusual by chance, alarms on some days."""
    folder = home.drift / release
    folder.mkdir(parents=True)
    names = [name for name in SIGNALS if name != "p_answered"]
    lines = []
    for number in range(first - last):
        at = (NOW - timedelta(days=first - number)).timestamp()
        moved = ("question_embedding", "category_mix") if number in alarms else ()
        suspect = tuple(dict.fromkeys([*moved, *(name for name in names if rng.random() < 0.012)]))
        told = "question_embedding, category_mix moved" if moved else "nothing moved"
        signals = tuple(SignalResult(name, 0.1, 0.4, None, 0.01, 180, 60, "as before") for name in names)
        report = DriftReport(at, "tested", told, at - 7 * 86_400, at, 60, 14, signals, (), moved, suspect, bool(moved))
        cause = {"cause": "questions", "plan": ["recompile prompts"]} if moved else {"cause": "none", "plan": []}
        lines.append(json.dumps(report_to_json(report) | cause) + "\n")
    (folder / "reports.jsonl").write_text("".join(lines))
