"""Teachers and judges behind HTTP: any `dspy.LM`, here on a stub server in this process that can be told to fail.

What DSPy's LM does by itself is shown beside what the program makes of it: a failed call is never a score, a verdict
or a training row.
"""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import dspy
import pytest

from corpora.types import Passage
from modules.judge import Compare, JudgeError
from modules.signatures import NOT_FOUND
from optimizers.errors import TrainingError
from optimizers.instruct import InstructTune
from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.tiny import write_tiny_model
from program.contract_review import ContractReview
from program.evaluate import EvaluationError, score_program
from program.teacher import LabelTeacher, teaches

TEXT = "The laws of Ohio govern."
PASSAGE = Passage("c:0", "c", 0, len(TEXT), TEXT)
FIELDS = {"quotes": TEXT, "answer": "Ohio", "better": "Ohio [A]"}
QUICK = {"max_steps": 1, "batch_size": 4, "progress": False, "rank": 4, "alpha": 8, "bf16": False}
OK = (200, {}, None, 0.0)
BAD_KEY = (401, {}, json.dumps({"error": {"message": "bad key", "type": "auth", "code": "invalid_api_key"}}), 0.0)
DOWN = (500, {"Retry-After": "0.05"}, json.dumps({"error": {"message": "down"}}), 0.0)
BUSY = (429, {"Retry-After": "1"}, json.dumps({"error": {"message": "slow down", "code": "rate_limit"}}), 0.0)
SLOW = (200, {}, None, 60.0)  # longer than anyone waits
TIMEOUT_S = 1.0
MALFORMED = (200, {}, '{"choices": [{', 0.0)


class Stub(ThreadingHTTPServer):
    """An OpenAI-compatible server: says `FIELDS`, after what stands in `plan` (status, headers, body, delay in s)."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.plan, self.asked, self.fields, self.always = [], [], dict(FIELDS), OK
        self.over = threading.Event()

    def lm(self, **kwargs):
        options = {"api_key": "x", "num_retries": 1, "cache": False, **kwargs}
        return dspy.LM("openai/stub", api_base=f"http://127.0.0.1:{self.server_port}/v1", **options)

    def answer(self):
        text = "".join(f"[[ ## {name} ## ]]\n{value}\n\n" for name, value in self.fields.items())
        message = {"role": "assistant", "content": text + "[[ ## completed ## ]]"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        return json.dumps(
            {"id": "1", "object": "chat.completion", "model": "stub", "choices": [choice], "usage": usage}
        )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.asked.append((time.monotonic(), self.path, self.headers["Authorization"], body))
        status, headers, said, delay_s = self.server.plan.pop(0) if self.server.plan else self.server.always
        self.server.over.wait(delay_s)
        raw = (said if said is not None else self.server.answer()).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", "Content-Length": len(raw), **headers}.items():
            self.send_header(name, str(value))
        self.end_headers()
        try:
            self.wfile.write(raw)
        except OSError:  # the caller gave up waiting
            self.close_connection = True


@pytest.fixture
def stub():
    server = Stub()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False), num_threads=2):
        yield server
    server.over.set()
    server.shutdown()
    server.server_close()
    thread.join()


def patience(fault):
    return {"timeout": TIMEOUT_S} if fault is SLOW else {}


def judge(lm):
    compare = Compare()
    compare.set_lm(lm)
    return compare(question="Which law?", passages=[PASSAGE], answer_a="Ohio", answer_b=NOT_FOUND)


def review(lm, of=ContractReview, *args):
    """A program whose retriever finds PASSAGE, on `lm`."""
    program = of(SimpleNamespace(folder=Path("no index")), *args)
    program.retrieve = lambda question, contract_id: dspy.Prediction(passages=[PASSAGE])
    program.set_lm(lm)
    return program


def examples(count):
    gold = {"answer": "Ohio", "found": True, "quotes": [TEXT], "category": "Law", "contract_id": "c"}
    made = [dspy.Example(question=f"Which law {i}?", question_id=f"c__{i}", **gold) for i in range(count)]
    return [example.with_inputs("question", "contract_id") for example in made]


def test_a_judge_asks_over_http_and_its_verdict_is_read(stub):
    assert judge(stub.lm()).better == "A"
    ((_, path, key, body),) = stub.asked
    assert (path, key, body["model"]) == ("/v1/chat/completions", "Bearer x", "stub")
    assert [turn["role"] for turn in body["messages"]] == ["system", "user"] and TEXT in body["messages"][1]["content"]
    stub.fields["better"] = "Ohio, I think"
    with pytest.raises(JudgeError, match="Ohio, I think"):
        judge(stub.lm())


@pytest.mark.parametrize("engine", ["auto", "litellm"])
@pytest.mark.parametrize(("fault", "waited_s"), [(BUSY, 1.0), (DOWN, 0.05), (SLOW, 0.0)])
def test_a_busy_failing_or_slow_server_is_asked_again(stub, monkeypatch, fault, waited_s, engine):
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # else it looks for prices on the network
    stub.plan = [fault]
    assert judge(stub.lm(engine=engine, **patience(fault))).better == "A"
    first, second = (asked[0] for asked in stub.asked)
    assert second - first >= waited_s  # as Retry-After told


@pytest.mark.parametrize(
    ("fault", "error", "told", "times"),
    [
        (BUSY, dspy.LMRateLimitError, "slow down", 2),
        (DOWN, dspy.LMServerError, "down", 2),
        (SLOW, dspy.LMTransportError, "timed out.*1s", 2),
        (MALFORMED, dspy.LMProviderError, "is not JSON", 1),
        (BAD_KEY, dspy.LMAuthError, "Check that your API key is correct", 1),
    ],
)
def test_a_lasting_failure_is_an_error_that_says_what_to_do_and_no_verdict(stub, fault, error, told, times):
    stub.always = (fault[0], {**fault[1], "Retry-After": "0.05"} if fault[1] else {}, *fault[2:])
    with pytest.raises(error, match=f"(?s){told}"):
        judge(stub.lm(**patience(fault)))
    assert len(stub.asked) == times  # what cannot get better is not asked again


@pytest.mark.parametrize("fault", [DOWN, SLOW, MALFORMED, BAD_KEY])
def test_a_failed_call_is_counted_and_never_scored(stub, fault):
    program = review(stub.lm(num_retries=0, **patience(fault)))
    stub.plan = [fault]
    rows = score_program(program, examples(6), "remote", threads=1, progress=False)
    assert [row["error"] is not None for row in rows] == [True] + [False] * 5
    assert rows[0]["exact_match"] is None
    assert [row["exact_match"] for row in rows[1:]] == [1.0] * 5
    stub.plan = [fault] * 2
    with pytest.raises(EvaluationError, match="2 of 6 calls failed"):
        score_program(program, examples(6), "remote", threads=1, progress=False)


@pytest.fixture
def student_lm(tmp_path):
    yield local_lm(write_tiny_model(tmp_path / "tiny", context_tokens=4096), work_dir=tmp_path / "work", max_tokens=8)
    forget_engines()


def tuned(student_lm, teacher, count=8, **kwargs):
    tuner = InstructTune(metric=teaches, train_kwargs=QUICK, num_threads=1, **kwargs)
    return tuner.compile(review(student_lm), trainset=examples(count), teacher=teacher)


def training_log(program):
    lm = program.reviewer.predict.lm
    return json.loads((lm.engine.adapters_dir / lm.model.split("@")[1] / "training.json").read_text())


def test_a_remote_teacher_trains_the_local_student(stub, student_lm):
    program = tuned(student_lm, review(stub.lm()))
    assert len(stub.asked) == training_log(program)["rows"] == 8
    assert program.reviewer.predict.lm.model.startswith(student_lm.model + "@")


def test_labels_ask_no_server(stub, student_lm):
    program = tuned(student_lm, review(stub.lm(), LabelTeacher, examples(4)), count=4)
    assert not stub.asked and training_log(program)["rows"] == 4


def test_what_a_remote_teacher_could_not_answer_is_no_training_row(stub, student_lm):
    stub.plan = [OK, DOWN, OK]
    program = tuned(student_lm, review(stub.lm(num_retries=0)), max_failed=0.2)
    assert len(stub.asked) == 8 and training_log(program)["rows"] == 7


def test_a_remote_teacher_that_refuses_ends_the_training_with_the_remedy(stub, student_lm):
    stub.always = BAD_KEY
    with pytest.raises(TrainingError, match="(?s)8 of 8 examples failed.*API key is correct") as caught:
        tuned(student_lm, review(stub.lm()))
    assert isinstance(caught.value.__cause__, dspy.LMAuthError) and len(stub.asked) == 8
