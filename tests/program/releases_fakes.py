"""Run folders in the shape that `evergreen compile` leaves, made without a model."""

import hashlib
import json
from pathlib import Path

from program.runs import ROW_KEYS

INSTRUCTIONS = "Answer the question from the passages of a contract."


def write_run(folder: Path, number: int, *, answers: dict[str, tuple[str, float]] | None = None) -> Path:
    """A complete run; runs of different numbers differ in adapter, seed and prompt, and share the index.

    `answers` are the kept stage's (answer, exact match) by question id, "c<contract>-<category>".
    """
    answers = answers or {"c1-Parties": ("Acme", 1.0), "c2-Parties": ("Bolt", 0.0)}
    bounds = {"mean": 0.5 + number / 100, "low": 0.5, "high": 0.9, "n": len(answers), "n_clusters": 2}
    stage = {
        "stage": "p -> s", "n_scored": len(answers), "n_failed": 0, "n_contracts": 2, "categories": [],
        "scores": {"exact_match": bounds, "cuad_f1": None},
    }  # fmt: skip
    rows = [_row("base", key, "nothing", 0.0) for key in answers]
    rows += [_row("p -> s", key, *said) for key, said in answers.items()]
    calls = {"reviewer.predict": {"adapter": f"sft-{number}"}}
    signature = {"instructions": f"{INSTRUCTIONS} Number {number}.", "fields": []}
    program = {"reviewer.predict": {"demos": [{"answer": str(number)}], "signature": signature}, "metadata": {}}
    files: dict[str, object] = {
        "STATUS": "complete\n",
        "config.json": {"lm": "evergreen-base", "recipe": "p -> s", "seed": number},
        "versions.json": {"python": "3"},
        "data.json": {"files": {"corpus": {"sha256": "ab", "bytes": 10}}, "splits": {"train": ["c1"], "test": ["c2"]}},
        "summary.json": {"chosen": "p -> s", "stages": [stage], "comparisons": []},
        "scores.jsonl": "".join(json.dumps(row) + "\n" for row in rows),
        "retrieval.json": {"index": "index", "embedder": None, "settings": {}, "cut": {}},
        "index/index.json": {"format": 1, "generation": "g1"},
        "index/contracts/c.json": {"id": "c1", "complete": True, "text": "An agreement.", "passages": []},
        "index/chroma/chroma.sqlite3": "vectors",
        "index/.lock": "",
        "retriever/unused/index/index.json": {},
        "labels.db": "labels",
        "program/program.json": program,
        "program/local_lm.json": {"predictors": calls, "base": "evergreen-base:1", "digest": "d", "spec": {}},
    }
    for name in (f"sft-{number}", "sft-shared"):
        files[f"program/adapters/{name}/adapter_config.json"] = {"peft_type": "LORA", "r": 4}
        files[f"program/adapters/{name}/adapter_model.safetensors"] = f"weights {name}"
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    below = folder / "program"
    sealed = {p.relative_to(below).as_posix(): _sha256(p) for p in sorted(below.rglob("*")) if p.is_file()}
    (below / "COMPLETE").write_text(json.dumps({"kind": "program", "files": sealed}))
    return folder


def _row(stage: str, question_id: str, answer: str, exact_match: float) -> dict[str, object]:
    contract_id, _, category = question_id.partition("-")
    return dict.fromkeys(ROW_KEYS) | {
        "stage": stage, "question_id": question_id, "contract_id": contract_id, "category": category,
        "question": f"{category}?", "gold_answer": "gold", "gold_quotes": ["gold"], "answer": answer, "quotes": [],
        "found": True, "exact_match": exact_match, "token_f1": exact_match, "seconds": 0.1,
    }  # fmt: skip


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
