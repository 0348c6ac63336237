"""The process's engines: equal descriptions share one dispatcher and one model."""

import atexit
import threading
from pathlib import Path

from optimizers.local_lm.serving.engine import LocalEngine
from optimizers.local_lm.weights import forget_weights, load_weights

_engines: dict[tuple, LocalEngine] = {}
_building = threading.Lock()


def shared_engine(
    name_or_path: str,
    *,
    work_dir: str,
    quantize: str = "auto",
    device: str = "auto",
    dtype: str | None = None,
    max_batch: int = 64,
    max_tokens: int = 512,
) -> LocalEngine:
    """The process's engine of this description; equal descriptions share one dispatcher and one model."""
    weights = load_weights(name_or_path, quantize=quantize, device=device, dtype=dtype)
    spec = {
        "name_or_path": str(name_or_path),
        "work_dir": str(work_dir),
        "quantize": weights.quantize or "none",
        "device": device,
        "dtype": dtype,
        "max_batch": max_batch,
        "max_tokens": max_tokens,
    }
    with _building:
        key = (id(weights), *spec.values())
        engine = _engines.get(key)
        if engine is None:
            engine = LocalEngine(weights, Path(work_dir), max_batch=max_batch, max_tokens=max_tokens)
            engine.spec = spec
            _engines[key] = engine
        return engine


@atexit.register
def _stop_engines() -> None:
    # A daemon thread inside torch while the interpreter goes down can take the process with it.
    for engine in list(_engines.values()):
        engine.close(timeout_s=5.0)


def forget_engines() -> None:
    """Stop and drop every shared engine, and the weights registry with them (a fresh process's state)."""
    with _building:
        for engine in _engines.values():
            engine.close()
        _engines.clear()
    forget_weights()
