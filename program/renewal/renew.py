"""One renewal: inputs, plan, candidate, skills, latency, gate, release, shadow, compared, promote; each stage kept, so
that a killed one goes on. One that promotes nothing ends with "refresh": new contracts are indexed all the same.

    home/renewals/0003/  stages/*.json  feedback.db  calls/  candidate/ (a run)  decision.json  gate.html  outcome.json

`outcome.json` ends it: promoted, refused, undecided, kept (the recipe brought nothing on validation) or failed. While
there is none, `renew` goes on with it before anything else. Nothing touches the live release but the last stage, which
moves one pointer; serving goes on meanwhile. With `shadow_answers` a candidate that the gate lets through waits between
"shadow" and "compared", asked silently beside the live release: `renew` says "shadow" then, and later looks go on.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dspy

from corpora.cuad import read_cuad
from corpora.types import Corpus
from optimizers.errors import TrainingError
from program.compile import build_adapter
from program.compile import compile as run_compile
from program.config import CompileConfig
from program.failpoints import reach
from program.forgetting.rounds import programs, rounds_of
from program.forgetting.skills import Mark, SuiteStore, marks_then
from program.forgetting.suite import marks_on
from program.gate.decide import decide
from program.gate.page import read_decision, read_decisions, write_decision
from program.gate.pairs import side_of
from program.gate.shadow_now import end_shadow
from program.gate.types import Decision, Evidence, GateRules
from program.releases.store import ReleaseStore
from program.releases.types import ReleaseError
from program.renewal.calls import paid_calls, remembered
from program.renewal.config import RenewalConfig, load_renewal
from program.renewal.footprint import weight_bytes
from program.renewal.home import Home, RenewalError, renewals, renewing
from program.renewal.inputs import look, take
from program.renewal.labelled import FILE_NAME, harm, set_apart
from program.renewal.plan import Plan, make_plan
from program.renewal.refreshing import refresh
from program.renewal.shadowing import asked_beside, shadow_rules
from program.renewal.stages import Stages
from program.renewal.timing import side_by_side
from program.renewal.triggers import Trigger, due
from program.runs import is_complete, read_run, write_json

Say = Callable[[str], None]
TRIES = 3


def renew(
    home: str | Path,
    *,
    by_hand: str = "",
    cause: tuple[str, str] | None = None,
    say: Say = print,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
    compile: Callable[..., Any] = run_compile,
) -> dict[str, Any] | None:
    """Go on with the renewal that was left unfinished, or begin one if there is a reason; its outcome, None for none.

    The outcome is "shadow" while its candidate is asked silently: nothing is ended, and a later call looks again.
    `by_hand` is somebody's reason; `cause` what drift was attributed to, with its words; `compile` makes the candidate,
    as `program.compile.compile`. Raises RenewalError while another process renews, ConfigError, and what a stage
    raises; a full disk or a kill leaves it to be gone on with, anything else too, but the third time ends it as failed.
    """
    place = Home(Path(home).absolute())
    config = load_renewal(place.path)
    shadow_rules(config)  # a rule that is none is told before anything is paid for
    with renewing(place):
        folder = _unfinished(place)
        if folder is None:
            triggers = due(look(place, config, cause), config, now(), by_hand)
            if not triggers:
                return None
            _refuse_broken(place)
            folder = _begin(place, triggers, cause)
        say(f"renewal {folder.name}: {folder}")
        return _Renewal(place, config, folder, say, compile, now).run()


def _unfinished(home: Home) -> Path | None:
    open_ones = [home.renewals / told["id"] for told in renewals(home) if "outcome" not in told]
    return next((folder for folder in open_ones if (folder / "begun.json").is_file()), None)


def _refuse_broken(home: Home) -> None:
    """RenewalError where the live release is not as it was released: nothing is to be made of damaged weights."""
    releases = ReleaseStore.open(home.releases)
    try:
        live = releases.live()
        if live is not None:
            releases.verify(live.id)
    except ReleaseError as error:
        raise RenewalError(
            f"{error} Until then the one before is served, and nothing is renewed: put the files back, or make another "
            "one live (`evergreen releases rollback`)"
        ) from error


def _begin(home: Home, triggers: Sequence[Trigger], cause: tuple[str, str] | None) -> Path:
    taken = [int(told["id"]) for told in renewals(home)]
    folder = home.renewals / f"{max(taken, default=0) + 1:04d}"
    folder.mkdir(parents=True)
    write_json(folder / "begun.json", {"triggers": [asdict(one) for one in triggers], "cause": cause})
    return folder


class _Renewal:
    """The stages of one renewal, in order."""

    def __init__(
        self,
        home: Home,
        config: RenewalConfig,
        folder: Path,
        say: Say,
        compile: Callable[..., Any],
        now: Callable[[], datetime],
    ) -> None:
        self.compile, self.now = compile, now
        self.home, self.config, self.folder, self.say = home, config, folder, say
        self.stages = Stages(folder, say)
        self.releases = ReleaseStore.open(home.releases)
        self.suite = SuiteStore(home.skills)

    def run(self) -> dict[str, Any]:
        """Every stage that is not done yet, and the outcome."""
        told: dict[str, Any] = {}
        try:
            told["inputs"] = self.stages.run("inputs", lambda: take(self.home, self.config, self.folder, self.now()))
            plan = Plan(**self.stages.run("plan", lambda: asdict(self._plan(told["inputs"]))))
            told |= {"recipe": plan.recipe, "reasons": list(plan.reasons)}
            self.say(f"{plan.recipe}: {'; '.join(plan.reasons)}")
            candidate = self.stages.run("candidate", lambda: self._candidate(plan, told["inputs"]))
            told |= {"chosen": candidate["chosen"]}
            if candidate["chosen"] == "base":
                return self._end("kept", told, "no step raised the score on validation questions")
            skills = self.stages.run("skills", lambda: self._skills())
            seconds = self.stages.run("latency", lambda: self._latency(told["inputs"]))
            verdict = self.stages.run("gate", lambda: self._decide(told["inputs"], candidate, skills, seconds))
            told |= {"decision": verdict["id"]}
            release = self.stages.run("release", lambda: self._release(told["inputs"], verdict, plan))
            told |= {"release": release["id"]}
            outcome = {"promote": "promoted", "refuse": "refused"}.get(verdict["verdict"], "undecided")
            if outcome == "promoted":
                beside = self._beside(told["inputs"]["live"], release["id"])
                if beside:
                    told["shadow"] = {key: beside[key] for key in ("verdict", "why", "n")}
                if beside.get("verdict") == "wait":
                    self.say(f"{release['id']} is asked silently: {beside['why']}")
                    return {"id": self.folder.name, "outcome": "shadow", "why": beside["why"], **told}
                if beside.get("verdict", "kept") != "kept":
                    return self._end("refused", told, f"beside the live release: {beside['why']}")
                self.stages.run("promote", lambda: self._promote(told["inputs"], verdict, release["id"]))
            if outcome != "promoted" and verdict["harm"]:
                told["quarantine"] = self.stages.run("quarantine", lambda: self._set_apart(told["inputs"], verdict))
            return self._end(outcome, told, "; ".join(verdict["reasons"]))
        except Exception as error:
            full = isinstance(error, OSError) or isinstance(error.__cause__, OSError)  # a disk, told in other words too
            if not full and self._failed_again() >= TRIES:
                self._end("failed", told, f"{type(error).__name__}: {error}")
            raise

    def _failed_again(self) -> int:
        """How often this renewal has failed: a model's server may be back next time, wrong labels are still wrong."""
        path = self.folder / "failures.json"
        times = 1 + (json.loads(path.read_text(encoding="utf-8")) if path.is_file() else 0)
        write_json(path, times)
        return times

    def _plan(self, inputs: dict[str, Any]) -> Plan:
        begun = json.loads((self.folder / "begun.json").read_text(encoding="utf-8"))
        triggers = [Trigger(**one) for one in begun["triggers"]]
        cause = begun["cause"][0] if begun["cause"] else "none"
        return make_plan(triggers, self.config, cause=cause, has_feedback=inputs["feedback"] > 0)

    def _candidate(self, plan: Plan, inputs: dict[str, Any]) -> dict[str, Any]:
        """A run that starts from the live release, in `candidate`: where it is there already, it is that."""
        out, config = self.folder / "candidate", self.config
        live = self._live_path(inputs)
        if not is_complete(out):
            given = {
                "corpus": str(self.folder / "corpus.json"), "test_corpus": config.frozen, "lm": config.lm,
                "recipe": plan.recipe, "seed": config.seed, "unlabelled": config.contracts,
                "labeller": config.labeller, "out": str(out), "score_stages": "chosen",
                "feedback": str(self.folder / "feedback.db") if "a" in plan.recipe.split(" -> ") else None,
                "start_from": None if live is None else str(live),
            }  # fmt: skip
            # Only what is asked for: who makes candidates by a function of their own need not know the word.
            bounds = {} if config.max_memory_gib is None else {"max_memory_gib": config.max_memory_gib}
            with remembered(self.folder / "calls", paid=config.labeller, max_calls=config.max_calls):
                self.compile(
                    CompileConfig(**config.compile | given), overwrite=True, max_minutes=config.max_minutes, **bounds,
                    command="evergreen renew", say=self.say,
                )  # fmt: skip
        return {"chosen": read_run(out).summary["chosen"], "paid_calls": paid_calls(self.folder / "calls")}

    def _skills(self) -> dict[str, list[dict[str, Any]]]:
        """The candidate's marks on every frozen review skill."""
        if not any(skill.kind == "review" for skill in self.suite.skills()):
            return {}
        (_, candidate), marks = rounds_of([self.folder / "candidate"]), {}
        with programs(progress=False) as build, dspy.context(adapter=build_adapter()):
            for skill in self.suite.skills():
                if skill.kind == "review":
                    corpus = self.suite.corpus(skill)
                    marks[skill.name] = [asdict(one) for one in _marks(build(candidate, corpus), skill.name, corpus)]
        return marks

    def _latency(self, inputs: dict[str, Any]) -> dict[str, dict[str, float]]:
        return side_by_side(
            self._live_path(inputs), self.folder / "candidate", read_cuad(self.config.frozen), seed=self.config.seed
        )

    def _live_path(self, inputs: dict[str, Any]) -> Path | None:
        return self.releases.get(inputs["live"]).path if inputs["live"] else None

    def _decide(
        self,
        inputs: dict[str, Any],
        candidate: dict[str, Any],
        skills: dict[str, list[dict[str, Any]]],
        seconds: dict[str, dict[str, float]],
    ) -> dict[str, Any]:
        run, frozen = read_run(self.folder / "candidate"), {skill.name: skill for skill in self.suite.skills()}
        sides = {
            "incumbent": side_of(run, "base", memory_bytes=weight_bytes(self.config.lm, self._live_path(inputs))),
            "candidate": side_of(run, candidate["chosen"], memory_bytes=weight_bytes(self.config.lm, run.path)),
        }
        # The run timed one side after the other, beside whatever else the machine did.
        timed = {
            name: replace(side, rows=[row | {"seconds": seconds[name].get(row["question_id"])} for row in side.rows])
            for name, side in sides.items()
        }
        evidence = Evidence(
            **timed,
            texts={contract.id: contract.text for contract in read_cuad(self.config.frozen).contracts},
            skills={name: (marks_then(frozen[name]), [Mark(**one) for one in marks]) for name, marks in skills.items()},
            earlier=read_decisions(self.home.renewals),
        )
        decision: Decision = decide(evidence, GateRules(**self.config.gate))
        write_decision(self.folder, decision, evidence)
        return {
            "verdict": decision.verdict,
            "id": decision.id,
            "reasons": list(decision.reasons),
            "harm": harm(decision),
        }

    def _set_apart(self, inputs: dict[str, Any], verdict: dict[str, Any]) -> list[str]:
        """What is new since the last promotion and made the candidate worse waits until somebody has looked at it."""
        promoted = [told for told in renewals(self.home) if told.get("outcome") == "promoted"]
        if not promoted:  # a first candidate learnt from everything: there is nothing to tell good from bad by
            return []
        trusted = promoted[-1]["inputs"]["labelled"].values()
        apart = set_apart(self.home.path, inputs["labelled"], trusted, self.folder.name, verdict["harm"])
        if apart:
            self.say(f"{len(apart)} labelled contracts made it worse and wait in {FILE_NAME}: {', '.join(apart[:5])}")
        return apart

    def _release(self, inputs: dict[str, Any], verdict: dict[str, Any], plan: Plan) -> dict[str, Any]:
        """The candidate as a release that is not live."""
        release = self.releases.add(
            self.folder / "candidate", parents=[inputs["live"]] if inputs["live"] else [], decision=verdict["id"],
            lineage={"renewal": self.folder.name, "feedback_events": inputs["feedback"], "reasons": list(plan.reasons)},
        )  # fmt: skip
        return {"id": release.id}

    def _beside(self, live: str | None, release: str) -> dict[str, Any]:
        """What its answers beside the live release say; {} where none are asked for, or nothing is live yet."""
        if live is None or (self.config.shadow_answers is None and not self.stages.done("compared")):
            return {}
        return asked_beside(self.home, self.stages, self.config, release, live, self.now())

    def _promote(self, inputs: dict[str, Any], verdict: dict[str, Any], release: str) -> dict[str, Any]:
        """Make the release the live one; whatever it learnt is frozen as a skill then."""
        live = self.releases.live()
        if live is not None and live.id not in (inputs["live"], release):
            raise RenewalError(
                f"{live.id} went live while {inputs['live']} was being renewed; the decision does not hold for it. "
                "Renew again"
            )
        self.releases.promote(release, "; ".join(verdict["reasons"]) or "gate", decision=verdict["id"], by="renewal")
        reach("promote.live")
        self._freeze(release)
        return {"live": release}

    def _freeze(self, release: str) -> None:
        there = {skill.name for skill in self.suite.skills()}
        new = {name: read_cuad(path) for name, path in self.config.skills.items() if name not in there}
        if not new:
            return
        (_, candidate) = rounds_of([self.folder / "candidate"])
        with programs(progress=False) as build, dspy.context(adapter=build_adapter()):
            for name, corpus in new.items():
                marks = _marks(build(candidate, corpus), name, corpus)
                self.suite.add(name, corpus, marks, release=release, labelled_by="person")

    def _end(self, outcome: str, told: dict[str, Any], why: str) -> dict[str, Any]:
        live = told.get("inputs", {}).get("live")
        if outcome not in ("promoted", "failed") and live is not None and self.config.contracts is not None:
            refreshed = self.stages.run("refresh", lambda: refresh(self.home, self.config, self.folder, live))
            if refreshed:
                told["refreshed"] = refreshed
                why += f"; {refreshed['contracts']} new contracts are in the index of {refreshed['release']}, live now"
        seconds = self.stages.seconds()
        end_shadow(self.home.shadow, told.get("release", ""))
        ended = {"outcome": outcome, "why": why, **told, "seconds": seconds}
        ended["ended"] = self.now().isoformat(timespec="seconds")
        write_json(self.folder / "outcome.json", ended)
        self.say(f"{outcome}: {why}" if why else outcome)
        return {"id": self.folder.name, **ended}


def decision_of(home: Home, renewal: str) -> Decision | None:
    """The gate's decision in a renewal, if it came that far."""
    path = home.renewals / renewal / "decision.json"
    return read_decision(path) if path.is_file() else None


def _marks(program: dspy.Module, name: str, corpus: Corpus) -> list[Mark]:
    marks = marks_on(program, name, corpus, threads=32)
    if len(marks) < len(corpus.labels):
        raise TrainingError(f"{len(corpus.labels) - len(marks)} calls on skill {name!r} failed; renew again")
    return marks
