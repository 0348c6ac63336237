import dspy
import pytest

from optimizers.local_lm import forget_engines
from optimizers.local_lm.tiny import write_tiny_model


@pytest.fixture
def fresh_engines():
    """No DSPy cache, and no engine or model left over for the next test."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    yield
    forget_engines()


@pytest.fixture
def plain_chat():
    """No DSPy cache, ChatAdapter without its second try as JSON, two threads."""
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False), num_threads=2):
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random model."""
    return write_tiny_model(tmp_path_factory.mktemp("model") / "tiny")
