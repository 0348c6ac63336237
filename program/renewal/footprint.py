"""What a program takes to hold, for the gate: bytes of weights, of the base, its adapters and its embedder.

As they stand on disk, so that it can be told without loading either side. Not handled: what generation adds to it,
which is the same engine's on both sides, and a base that is quantized while it loads.
"""

import json
from pathlib import Path

from modules.embedder import packaged_folder
from optimizers.local_lm.weights import find_folder
from program.run_retrieval import read_retrieval

_ADAPTERS = "program/adapters"


def weight_bytes(lm: str, run: Path | None) -> int:
    """Bytes of the base `lm` and of what the run's program adds to it; `run` None is the plain base."""
    total = _bytes(find_folder(lm))
    if run is None:
        return total + _bytes(packaged_folder())
    told = json.loads((run / "program" / "local_lm.json").read_text(encoding="utf-8"))
    used = {one["adapter"] for one in told["predictors"].values() if one["adapter"]}
    total += sum(_bytes(run / _ADAPTERS / name) for name in used)
    return total + _bytes(read_retrieval(run).embedder or packaged_folder())


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
