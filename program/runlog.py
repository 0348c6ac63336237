"""What the optimizers say goes into the run's `compile.log`; the terminal keeps progress bars and our own lines."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import dspy


@contextmanager
def logged(path: Path) -> Iterator[None]:
    """Within the block, DSPy's log and whatever is printed go to `path` and nowhere else."""
    logger = logging.getLogger("dspy")
    with open(path, "a", encoding="utf-8", buffering=1) as file:
        handler = logging.StreamHandler(file)
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(handler)
        dspy.disable_logging()
        try:
            with redirect_stdout(file):
                yield
        finally:
            dspy.enable_logging()
            logger.removeHandler(handler)
