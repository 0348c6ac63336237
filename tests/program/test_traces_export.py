"""Traces out of the store: JSON lines, whole or not at all, and MLflow, where it is installed."""

import json
import sys
from types import SimpleNamespace

import pytest

from modules.index_files import StoreError
from program.traces.export import to_jsonl, to_mlflow
from program.traces.store import TraceStore
from program.traces.types import Trace

AT = ("2026-11-01T00:00:00.250000Z", "2026-11-22T09:14:03.120551Z")


@pytest.fixture
def store(tmp_path):
    with TraceStore.open(tmp_path / "traces.db") as opened:
        opened.record(
            Trace(
                id="a",
                at=AT[0],
                release="mine",
                question="Which law?",
                contract_id="one",
                answer="Ohio",
                found=True,
                spans=((1, 5),),
                latency_s=0.5,
                prompt_tokens=7,
                completion_tokens=2,
            )  # fmt: skip
        )
        opened.record(
            Trace(id="b", at=AT[1], release="mine", question="\ud800 no?", contract_id="one", error="OSError: no LM")
        )
        yield opened


def test_traces_are_written_as_lines(store, tmp_path):
    path = tmp_path / "out.jsonl"
    assert to_jsonl(store, path) == 2
    lines = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    lines[0]["spans"] = tuple(map(tuple, lines[0]["spans"]))
    assert [Trace(**line | {"spans": lines[0]["spans"] * (i == 0), "scores": (), "passages": ()})
            for i, line in enumerate(lines)] == list(store.between())  # fmt: skip
    assert to_jsonl(store, path, start="2026-11-02") == 1 and "OSError" in path.read_text()
    assert sorted(each.name for each in tmp_path.iterdir() if "out" in each.name) == ["out.jsonl"]


def test_a_file_that_cannot_be_written_leaves_what_was_there(store, tmp_path, monkeypatch):
    with pytest.raises(StoreError, match="folder that is there"):
        to_jsonl(store, tmp_path / "none" / "out.jsonl")
    path = tmp_path / "out.jsonl"
    path.write_text("before")
    monkeypatch.setattr("program.traces.export.os.replace", lambda *names: (_ for _ in ()).throw(OSError(28, "full")))
    with pytest.raises(StoreError, match="full"):
        to_jsonl(store, path)
    assert path.read_text() == "before"
    assert sorted(each.name for each in tmp_path.iterdir() if "out" in each.name) == ["out.jsonl"]


def test_without_mlflow_it_is_said_what_to_install(store, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ImportError, match="pip install .mlflow>=3"):
        to_mlflow(store, "reviews")


def test_traces_are_logged_to_mlflow(store, monkeypatch):
    spans, flushed = [], []

    def start(name, **given):
        spans.append(given | {"name": name})
        return SimpleNamespace(end=spans[-1].update)

    fake = SimpleNamespace(
        set_experiment=lambda name: SimpleNamespace(experiment_id=f"id of {name}"), start_span_no_context=start,
        flush_trace_async_logging=lambda: flushed.append(len(spans)),
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "mlflow", fake)
    assert to_mlflow(store, "reviews") == 2 and flushed == [2]
    one, other = spans
    assert one["experiment_id"] == "id of reviews" and one["inputs"] == {"question": "Which law?", "contract_id": "one"}
    assert one["outputs"] == {"answer": "Ohio", "found": True, "spans": ((1, 5),)} and one["status"] == "OK"
    assert one["start_time_ns"] == 1793491200_250000000 and one["end_time_ns"] - one["start_time_ns"] == 500_000_000
    assert one["attributes"]["mlflow.chat.tokenUsage"] == {"input_tokens": 7, "output_tokens": 2, "total_tokens": 9}
    assert one["tags"] == {"release": "mine", "shadow": "false", "trace_id": "a"}
    assert other["status"] == "ERROR" and other["attributes"]["error"] == "OSError: no LM"
    assert "mlflow.chat.tokenUsage" not in other["attributes"]
    assert to_mlflow(store, "reviews", start="2026-11-02") == 1
