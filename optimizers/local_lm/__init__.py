"""A local LM for DSPy: one Hugging Face causal LM in this process that stock DSPy can prompt and fine-tune.

lm = local_lm("evergreen-base")
dspy.configure(lm=lm, adapter=dspy.ChatAdapter(use_json_adapter_fallback=False))
program.set_lm(lm)
better = dspy.BootstrapFinetune(metric=metric).compile(program, trainset=trainset)
"""

from pathlib import Path
from typing import Any

import dspy

from optimizers.local_lm.programs import load_program, save_program
from optimizers.local_lm.provider import LocalProvider, LocalTrainingJob
from optimizers.local_lm.serving.engine import AsyncLocalEngine, Completion, LocalEngine
from optimizers.local_lm.serving.registry import forget_engines, shared_engine
from optimizers.local_lm.training.settings import METHODS
from optimizers.local_lm.weights import Weights, load_weights

__all__ = [
    "AsyncLocalEngine",
    "Completion",
    "LocalEngine",
    "LocalProvider",
    "LocalTrainingJob",
    "METHODS",
    "Weights",
    "forget_engines",
    "load_program",
    "load_weights",
    "local_lm",
    "save_program",
]


def local_lm(
    name_or_path: str | Path,
    *,
    quantize: str = "auto",
    device: str = "auto",
    dtype: str | None = None,
    work_dir: str | Path | None = None,
    max_batch: int = 64,
    max_tokens: int = 512,
    temperature: float = 0.0,
    **lm_kwargs: Any,
) -> dspy.LM:
    """A `dspy.LM` on a model in this process: `local/<name>:<8 hex>`, and `…@<adapter>` once it is fine-tuned.

    `name_or_path`: "evergreen-base" (bundled), a folder, or a hub id. `quantize`: "nf4", "none", or "auto" (nf4 for a
    large base on CUDA). `dtype`: default float32 on the CPU, bfloat16 on CUDA. `work_dir` (default "runs/local_lm")
    holds the adapters. `lm_kwargs` go to dspy.LM. The same arguments give LMs that share one model and one queue.
    Raises ModelError.
    """
    engine = shared_engine(
        str(name_or_path),
        work_dir=str(work_dir or Path("runs") / "local_lm"),
        quantize=quantize,
        device=device,
        dtype=dtype,
        max_batch=max_batch,
        max_tokens=max_tokens,
    )
    return dspy.LM(
        engine.model_string(),
        engine=engine,
        async_engine=AsyncLocalEngine(engine),
        provider=LocalProvider(engine),
        temperature=temperature,
        max_tokens=max_tokens,
        **lm_kwargs,
    )
