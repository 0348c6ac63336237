import gc
import time

import pytest

# A full collection walks all that torch, transformers and DSPy have imported, most of a second each time, and every
# training asks for some. While tests are collected there is nothing to free, and what was imported stays.
gc.disable()


def pytest_collection_finish():
    gc.freeze()
    gc.enable()


@pytest.fixture
def seconds():
    """CPU seconds of a call: the best of three, without collections, whose cost is the whole process's and not its."""

    def measure(call, *args):
        gc.collect()
        gc.disable()
        try:
            times = []
            for _ in range(3):
                began = time.process_time()
                call(*args)
                times.append(time.process_time() - began)
        finally:
            gc.enable()
        return min(times)

    return measure
