"""The methods that benchmarks/forgetting.py compares: one seed's contracts, index and LM, and a step of each method."""

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import dspy

from corpora.splits import subset
from corpora.synthetic import write_corpus
from corpora.types import Corpus
from modules.embedder import load_embedder
from modules.retriever import PassageIndex
from optimizers.distill import SDFT_PAPER, SelfDistill
from optimizers.distill_demonstrations import answer_text, demonstrate
from optimizers.guard_zoo import SkillZoo, known, nearest_centroid
from optimizers.guards import finetune_guarded
from optimizers.local_lm import local_lm
from optimizers.local_lm.prompts import encode_prompt
from optimizers.preference import Preference, PreferenceTune
from optimizers.preference_rollouts import rollouts
from program.base_model.train import known_houses
from program.compile import build_adapter
from program.contract_review import ContractReview
from program.evaluate import score_program
from program.examples import sample_examples, to_examples
from program.forgetting.abilities import draw_items, score_items
from program.forgetting.skills import Mark, marks_of
from program.forgetting.suite import kl_from_base
from program.guarding import label_rows, review_guard
from program.recipes import mean_score
from program.teacher import LabelTeacher, teaches

KNOWN = "known houses"
GUARDED = ("sft", "replay_self", "replay_labels", "kl", "osf", "low_rate", "merge")
TOGETHER = ("replay_labels+kl", "replay_labels+osf")
METHODS = (*GUARDED, *TOGETHER, "zoo_oracle", "zoo_nearest", "dpo", "sdft")
VAL_CONTRACTS, THREADS = 8, 32


@dataclass
class Cost:
    """What one round took, its validations included.

    Tokens: `trained` with gradients (up to the weights that were kept), `extra` forward only (a reference or teacher),
    `said` through the engine, prompts included; SDFT's rollouts, made inside the training, are in the seconds alone.
    """

    seconds: float = 0.0
    trained: int = 0
    extra: int = 0
    said: int = 0
    flops: float = 0.0


@dataclass
class House:
    """One skill: what it is learnt from, chosen and scored on."""

    name: str
    train: list[dspy.Example]
    val: list[dspy.Example]
    test: list[dspy.Example]
    contracts: Corpus


@dataclass
class Method:
    """One method's state: the program so far, experts of a zoo, and what came of each round."""

    word: str
    program: dspy.Module
    lms: dict[str, dspy.LM] = field(default_factory=dict)
    rounds: list[list[Mark]] = field(default_factory=list)
    costs: list[Cost] = field(default_factory=list)
    kl: list[list[tuple[float, str]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Bench:
    """One seed's contracts, index and LM, and the steps of each method over them."""

    def __init__(self, args: argparse.Namespace, work: Path) -> None:
        self.args, self.adapter, self.embedder = args, build_adapter(), load_embedder()
        sizes = (args.train_contracts, VAL_CONTRACTS, args.test_contracts)
        self.houses = [self._house(name, (name,), sizes) for name in args.houses]
        self.known = self._house(KNOWN, known_houses(), (args.pool_contracts, 1, args.test_contracts))
        contracts = [c for house in (*self.houses, self.known) for c in house.contracts.contracts]
        self.index = PassageIndex.build(contracts, folder=work / "index", embedder=self.embedder, max_chars=600)
        self.skill_of = {c.id: house.name for house in (*self.houses, self.known) for c in house.contracts.contracts}
        self.items = draw_items(known_houses(), args.ability_contracts, seed=1000 + args.seed)
        self.work = work
        self.begin("base")
        self.parameters = sum(p.numel() for p in self.lm.engine.weights.model.parameters())

    def begin(self, word: str) -> Method:
        """A method's state before its first round, with adapters of its own: one is named by its content, and another
        method's of the same content would cost nothing."""
        self.lm = local_lm(self.args.lm, work_dir=self.work / "lm" / word, max_tokens=192, logprobs=True)
        self.base = ContractReview(self.index, self.args.k)
        self.base.set_lm(self.lm)
        return Method(word, self.base)

    def _house(self, name: str, houses: Sequence[str], sizes: Sequence[int]) -> House:
        corpus, parts = write_corpus(houses, sum(sizes), seed=700 + self.args.seed), []
        ids = [contract.id for contract in corpus.contracts]
        for n in sizes:
            parts.append(to_examples(subset(corpus, ids[:n])))
            ids = ids[n:]
        n_train, n_val, n_test = self.args.labels, self.args.val_questions, self.args.test_questions
        drawn = [sample_examples(part, n, self.args.seed) for part, n in zip(parts[:2], (n_train, n_val), strict=True)]
        test = Random(f"{self.args.seed}/test").sample(parts[2], min(n_test, len(parts[2])))
        return House(name, *drawn, test, corpus)

    # -- scores

    def score(self, method: Method, lm: dspy.LM) -> list[Mark]:
        """Marks on every house's test questions and on the abilities (of `lm`, which for a zoo is the base)."""
        marks = []
        for house in (self.known, *self.houses):
            rows = score_program(method.program, house.test, house.name, threads=64, progress=False)
            marks += marks_of(house.name, rows)
        return marks + score_items(lm, self.items, self.adapter, threads=THREADS)[0]

    def kl(self, lm: dspy.LM, house: House) -> list[tuple[float, str]]:
        """KL from the base on the new task's prompts."""
        examples = house.val[: self.args.kl_prompts]
        rows = self.label_rows(self.base, examples)
        return kl_from_base(self.lm, lm, [(row["messages"][:-1], row["group"]) for row in rows])

    def label_rows(self, program: dspy.Module, examples: list[dspy.Example]) -> list[dict[str, Any]]:
        """The labels as conversations under the program's own prompts."""
        return label_rows(program, examples, self.adapter, threads=THREADS)

    # -- methods

    def step(self, method: Method, i: int) -> Cost:
        """Learn house `i`; what it cost."""
        engine, house = self.lm.engine, self.houses[i]
        engine.completions.clear()
        before, began = {path.name for path in engine.adapters_dir.glob("*")}, time.perf_counter()
        {"dpo": self._dpo, "sdft": self._sdft}.get(method.word, self._sft)(method, house, i)
        cost = Cost(seconds=time.perf_counter() - began)
        for path in engine.adapters_dir.glob("*/training.json"):
            if path.parent.name not in before:
                self._count(json.loads(path.read_text()), cost)
        for one in engine.completions:
            cost.said += len(encode_prompt(engine.weights, one.chat)) + len(one.ids)
        cost.flops += 2 * self.parameters * (cost.said + cost.extra)
        return cost

    def _count(self, record: dict[str, Any], cost: Cost) -> None:
        """Forward 2 and backward to activations 2 a parameter and token, to the trained weights 2 of theirs."""
        if not record.get("history"):
            return  # a merged adapter
        tokens, settings = record["history"][-1]["tokens"], record["settings"]
        cost.trained += tokens
        if settings["method"] == "sft" and settings.get("kl_beta"):
            cost.extra += round(tokens / settings["epochs"])  # the incumbent reads each row once
        if settings["method"] in ("dpo", "sdft"):
            cost.extra += tokens if settings["method"] == "sdft" else round(tokens / settings["epochs"])
        trainable = min(record["trainable_parameters"], self.parameters)
        cost.flops += tokens * (4 * self.parameters + 2 * trainable)

    def _sft(self, method: Method, house: House, i: int) -> None:
        lm = method.program.predictors()[0].lm if not method.word.startswith("zoo") else self.lm
        program = self.base if method.word.startswith("zoo") else method.program
        tuned = finetune_guarded(lm, self.label_rows(program, house.train), self._guard(method, i), self._kwargs())
        if method.word.startswith("zoo"):
            method.lms[house.name] = tuned
            method.program = SkillZoo(self.base, {KNOWN: self.lm, **method.lms}, self._route(method))
        else:
            method.program = method.program.deepcopy()
            method.program.set_lm(tuned)
        method.notes.append(tuned.model.partition("@")[2] or "the base")

    def _guard(self, method: Method, i: int) -> Any:
        args = self.args
        options: dict[str, dict[str, Any]] = {
            "replay_self": {"n": args.replay, "seed": args.seed},
            "replay_labels": {"share": args.replay_share, "seed": args.seed},
            "kl": {"beta": args.kl_beta_beside if "+" in method.word else args.kl_beta},
            "low_rate": {"factor": args.low_factor, "kl_budget": args.kl_budget, "seed": args.seed},
            "merge": {"weight": args.merge},
        }
        word = {"sft": "none", "zoo_oracle": "zoo", "zoo_nearest": "zoo"}.get(method.word, method.word)
        earlier = [example for house in (self.known, *self.houses[:i]) for example in house.train]
        told = {key: value for one in word.split("+") for key, value in options.get(one, {}).items()}
        return review_guard(word, method.program, earlier, self.adapter, threads=THREADS, **told)

    def _route(self, method: Method) -> Any:
        learnt = {KNOWN, *method.lms}
        if method.word == "zoo_oracle":
            skill_of = {key: name if name in learnt else KNOWN for key, name in self.skill_of.items()}
            return known(skill_of, "contract_id")
        texts = {
            house.name: [self._opening(e.contract_id) for e in house.train]
            for house in (self.known, *self.houses) if house.name in learnt
        }  # fmt: skip
        return nearest_centroid(self.embedder.encode, texts, lambda given: self._opening(given["contract_id"]))

    def _opening(self, contract_id: str) -> str:
        return self.index.contract(contract_id).text[:1000]

    def _dpo(self, method: Method, house: House, i: int) -> None:
        """The label before what the program says where that is something else, pairs of its own weights."""

        teacher = LabelTeacher(self.index, house.train)
        shown = demonstrate(method.program, house.train, teacher, self.adapter, metric=teaches, threads=THREADS).shown
        runs = rollouts(method.program, [one.example for one in shown], temperature=None, threads=THREADS)
        pairs = []
        for one, (run,) in zip(shown, runs, strict=True):
            gold, said = answer_text(method.program, one, self.adapter), run.calls[0].text if run.calls else ""
            if said and said != gold:
                about = (one.example.contract_id, one.example.question, "gold")
                pairs.append(Preference(0, one.inputs, gold, said, *about))
        tune = PreferenceTune(
            preferences=pairs, score=mean_score(64), adapter=self.adapter, seed=self.args.seed, max_kl=None,
            train_kwargs=self._kwargs(epochs=self.args.dpo_epochs),
        )  # fmt: skip
        method.program = tune.compile(method.program, house.train, valset=house.val)
        method.notes.append(f"{len(pairs)} pairs; {tune.log[-1]}")

    def _sdft(self, method: Method, house: House, i: int) -> None:

        settings = {**(SDFT_PAPER if self.args.sdft_paper else {}), **self._kwargs(epochs=self.args.sdft_epochs)}
        tune = SelfDistill(
            score=mean_score(64), metric=teaches, train_kwargs=settings, adapter=self.adapter, num_threads=THREADS
        )
        teacher = LabelTeacher(self.index, house.train + house.val)
        method.program = tune.compile(method.program, trainset=house.train, valset=house.val, teacher=teacher)
        log = tune.log
        method.notes.append(
            f"teacher {log.teacher_score:.3f} against {log.plain_score:.3f} without the demonstration, "
            f"paid={log.paid}, kept={log.kept}, {log.generation_share} of the time in generation"
        )

    def _kwargs(self, **changes: Any) -> dict[str, Any]:
        told = {"epochs": self.args.epochs, "batch_size": 4, "rank": 16, "alpha": 32, "seed": self.args.seed}
        return told | {"progress": False} | changes
