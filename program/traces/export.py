"""Traces as a file of JSON lines, or in MLflow for who keeps traces there.

Not handled: MLflow exports of what it has already; a second export of the same traces is there twice.
"""

import json
import os
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from modules.index_files import StoreError
from program.traces.store import TraceStore
from program.traces.types import Trace

_INPUTS = ("question", "contract_id")
_OUTPUTS = ("answer", "found", "spans")


def to_jsonl(store: TraceStore, path: str | Path, *, start: str | None = None, stop: str | None = None) -> int:
    """Write the traces from `start` to `stop`, a line each, whole or not at all; returns how many.

    StoreError for a path that cannot be written, ValueError for a time that is none.
    """
    path, n = Path(path), 0
    traces = store.between(start, stop)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("w", encoding="utf-8") as file:
            for trace in traces:
                # As ASCII: half a character has no UTF-8.
                file.write(json.dumps(asdict(trace)) + "\n")
                n += 1
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        beside.unlink(missing_ok=True)
        raise StoreError(
            f"{path} cannot be written ({error.strerror}). Give a path in a folder that is there."
        ) from error
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
    return n


def to_mlflow(store: TraceStore, experiment: str, *, start: str | None = None, stop: str | None = None) -> int:
    """Log the traces from `start` to `stop` to MLflow, a trace of one span each; returns how many.

    It goes where MLflow's tracking address points; the experiment is made where there is none of that name. ImportError
    where MLflow is not installed, and whatever it raises.
    """
    mlflow = _mlflow()
    experiment_id = mlflow.set_experiment(experiment).experiment_id
    n = 0
    for trace in store.between(start, stop):
        _log(mlflow, experiment_id, trace)
        n += 1
    # What is logged in the background is there when this returns.
    mlflow.flush_trace_async_logging()
    return n


def _log(mlflow: ModuleType, experiment_id: str, trace: Trace) -> None:
    values = asdict(trace)
    began = int(datetime.fromisoformat(trace.at).timestamp() * 1e6) * 1000
    inputs, outputs = ({name: values.pop(name) for name in names} for names in (_INPUTS, _OUTPUTS))
    span = mlflow.start_span_no_context(
        "review",
        span_type="CHAIN",
        inputs=inputs,
        attributes=values | _usage(trace),
        tags={"release": trace.release, "shadow": str(trace.shadow).lower(), "trace_id": trace.id},
        experiment_id=experiment_id,
        start_time_ns=began,
    )
    status = "OK" if trace.error is None else "ERROR"
    span.end(outputs=outputs, status=status, end_time_ns=began + int((trace.latency_s or 0) * 1e9))


def _usage(trace: Trace) -> dict[str, Any]:
    """The tokens under the name that MLflow sums them by."""
    if trace.prompt_tokens is None or trace.completion_tokens is None:
        return {}
    tokens = {"input_tokens": trace.prompt_tokens, "output_tokens": trace.completion_tokens}
    return {"mlflow.chat.tokenUsage": tokens | {"total_tokens": sum(tokens.values())}}


def _mlflow() -> ModuleType:
    try:
        import mlflow
    except ImportError as error:
        raise ImportError(
            'MLflow is not installed, which traces were to go to. Run `pip install "mlflow>=3.17.2,<3.18"`, or write '
            "them to a file by to_jsonl."
        ) from error
    return mlflow
