"""What the optimizers say goes into the run's `compile.log`; the terminal keeps progress bars and our own lines."""

import logging
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
