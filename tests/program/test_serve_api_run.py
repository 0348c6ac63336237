"""Serving for real: a port that listens, one that is taken, Ctrl-C, and the bundled pieces on a compiled run."""

import json
import os
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request

import pytest
import uvicorn

from corpora.types import Contract
from program.config import ConfigError
from program.feedback.store import FeedbackStore
from program.runs import RunError
from program.serve.app import create_app
from program.serve.errors import ServeError
from program.serve.run import listen, open_program, serve
from program.serve.session import Session
from program.traces.store import TraceStore


class Never:
    """A program that is never asked."""


def test_a_real_server_answers_and_stops(tmp_path):
    with FeedbackStore.open(tmp_path / "f.db") as store, listen("127.0.0.1", 0) as listening:
        session = Session(Never(), {"one": Contract("one", "text")}, store, release="mine")
        server = uvicorn.Server(uvicorn.Config(create_app(session), log_level="error"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            address = f"http://127.0.0.1:{listening.getsockname()[1]}"
            assert json.load(_get(f"{address}/api/contracts")) == [{"id": "one", "n_characters": 4}]
            with pytest.raises(urllib.error.HTTPError) as refused:
                _get(f"{address}/api/contracts", host="evil.example")
            assert refused.value.code == 403
        finally:
            server.should_exit = True
            thread.join(20)
            session.close()
        assert not thread.is_alive()


def _get(url, **headers):
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=20)


def test_a_port_that_is_taken_is_told():
    with listen("127.0.0.1", 0) as listening:
        port = listening.getsockname()[1]
        with pytest.raises(ServeError, match=f"{port} is in use by another process"), listen("127.0.0.1", port):
            pass
    for host, port in (("127.0.0.1", 99_999), ("no.such.host.invalid", 0)):
        with pytest.raises(ServeError, match="cannot be listened at"), listen(host, port):
            pass


def test_the_address_and_the_run_are_checked_first(tmp_path, monkeypatch):
    monkeypatch.delenv("EVERGREEN_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="no token"):
        serve(tmp_path, host="0.0.0.0")
    monkeypatch.setenv("EVERGREEN_TOKEN", "short")
    with pytest.raises(ConfigError, match="5 characters"):
        serve(tmp_path)
    monkeypatch.delenv("EVERGREEN_TOKEN")
    with pytest.raises(RunError):
        serve(tmp_path)
    assert list(tmp_path.iterdir()) == []


SERVE = """
import sys
import dspy
from program.serve.run import serve
dspy.configure_cache(enable_disk_cache=False)
serve(sys.argv[1], port=0, store=sys.argv[2], say=lambda line: print(line, flush=True))
print("returned", flush=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals are POSIX's")
def test_a_compiled_run_is_served_and_ctrl_c_keeps_what_was_said(compiled, tmp_path):
    command = [sys.executable, "-c", SERVE, compiled.path, tmp_path / "f.db"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        try:
            told = [child.stdout.readline(), child.stdout.readline()]
            assert told[1].startswith("http://127.0.0.1:"), child.stderr.read()
            address = told[1].split("/    ")[0]
            contract_id = json.load(_get(f"{address}/api/contracts"))[0]["id"]
            body = json.dumps({"question": "Governing Law", "contract_id": contract_id}).encode()
            request = urllib.request.Request(f"{address}/api/ask", body, {"Content-Type": "application/json"})
            answer = json.load(urllib.request.urlopen(request, timeout=120))
            child.send_signal(signal.SIGINT)
            rest, errors = child.communicate(timeout=60)
        finally:
            child.kill()
    assert child.returncode == 0 and "stopped" in rest and "returned" in rest, errors
    assert "Traceback" not in errors
    with FeedbackStore.open(tmp_path / "f.db") as store:
        (recorded,) = store.answers()
        assert recorded.id == answer["id"] and recorded.inputs and recorded.completion
        assert recorded.release == compiled.path.name
    with TraceStore.open(tmp_path / "traces.db") as traces:
        (trace,) = traces.between()
        assert trace.answer_id == answer["id"] and trace.scores and trace.release == recorded.release
        assert trace.prompt_tokens > 0 and trace.completion_tokens > 0


def test_a_run_is_opened_on_a_library(compiled, tmp_path, monkeypatch, words_embedder):
    from program import library
    from program.library import index_paths

    monkeypatch.setattr(library, "load_embedder", lambda *args, **kwargs: words_embedder())
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "deal.txt").write_text("Supply Agreement\n\nIt is governed by the laws of Ohio.\n")
    index_paths([tmp_path / "files"], tmp_path / "library", progress=False)
    with open_program(compiled.path, tmp_path / "library") as program:
        assert program.retrieve.index.contract_ids == ("deal",)
        assert program(question="Which law governs?", contract_id="deal").answer is not None
    both = open_program(compiled.path, tmp_path / "library"), open_program(compiled.path, tmp_path / "library")
    with both[0] as program, both[1]:
        assert program(question="Which law governs?", contract_id="deal").passages
