"""What the optimizers say goes into the run's `compile.log`; the terminal keeps progress bars and our own lines."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import dspy

_OURS = ("optimizers", "program")


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Within the block, DSPy's log and what is printed go to `path` and nowhere else; ours there too, and warnings."""
    loggers = {name: logging.getLogger(name) for name in ("dspy", *_OURS)}
    levels = {name: logger.level for name, logger in loggers.items()}
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for name, logger in loggers.items():
            logger.addHandler(handler)
            if name in _OURS:
                logger.setLevel(logging.INFO)
                # Where a logger has a handler, Python's own for warnings, to standard error, is not asked.
                logger.addHandler(logging.lastResort)
        dspy.disable_logging()
        try:
            with redirect_stdout(file):
                yield
        finally:
            dspy.enable_logging()
            for name, logger in loggers.items():
                logger.removeHandler(handler)
                logger.removeHandler(logging.lastResort)
                logger.setLevel(levels[name])


def quiet() -> None:
    """Library chatter off: progress bars and our own lines remain."""
    warnings.filterwarnings("ignore", category=FutureWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    for name in ("transformers", "trl", "chromadb", "httpx", "LiteLLM", "sentence_transformers", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()  # of loading weights, once per model
    # A run that is answered from an earlier run's cache would report that run's times as its own.
    dspy.configure_cache(enable_disk_cache=False)
