import json
import re
from html.parser import HTMLParser
from types import SimpleNamespace

import pytest

from modules.signatures import NOT_FOUND
from program.recipes import STEPS
from program.report import choose_questions, terminal_table, write_report
from program.runs import RunError, RunFolder
from program.summary import calibration_error, reliability_table, score_row, summarize


def _row(stage, contract, category, right, *, absent=False, error=None, gold="<script>alert(1)</script> Ohio"):
    gold = NOT_FOUND if absent else gold
    answer = gold if right else "Texas" if absent else NOT_FOUND
    found = answer != NOT_FOUND
    row = {
        "stage": stage,
        "contract_id": contract,
        "question_id": f"{contract}__{category}",
        "category": category,
        "question": f"What about {category}?",
        "gold_answer": gold,
        "gold_quotes": [] if absent else ["laws of <b>Ohio</b>"],
        "answer": answer,
        "quotes": [{"text": "laws of <b>Ohio</b>", "start": 5, "end": 24}] if found else [],
        "found": found,
        "confidence": 0.9 if right else 0.3,
        "p_answered": None,
        "error": error,
        "exact_match": float(right),
        "token_f1": float(right),
        "seconds": 0.5,
    }
    return row if error is None else row | {"exact_match": None, "token_f1": None, "confidence": None}


def _stage(stage, skill, contracts=4, errors=()):
    """Questions 0–7 of each contract, every third absent, right below `skill`; numbers in `errors` failed."""
    return [
        _row(
            stage, f"c{c}", f"k{q}", (q + c) % 8 < skill, absent=q % 3 == 2, error="no answer" if q in errors else None
        )
        for c in range(contracts)
        for q in range(8)
    ]


def _report(tmp_path, stages, status="complete", losses=None, chosen=None, config=None):
    with RunFolder.start(tmp_path / "r") as run:
        rows = [row for stage in stages for row in stage]
        for stage in stages:
            run.append_scores(stage[0]["stage"], stage)
        run.write_json("config.json", {"lm": "evergreen-base", "seed": 0, "recipe": "p -> s"} | (config or {}))
        run.write_json("summary.json", summarize(rows, resamples=200) | ({"chosen": chosen} if chosen else {}))
        for place in ("training/sft-1a2b", "program/adapters/sft-copy") if losses is not None else ():
            (run.folder / place).mkdir(parents=True)
            (run.folder / place / "training.json").write_text(json.dumps(losses))
        place = run.finish(status, "it broke" if status != "complete" else "")
    return write_report(place).read_text()


LOSSES = {"base": "local/x", "history": [{"step": i, "loss": 2 / (i + 1), "tokens": i, "seconds": i} for i in range(9)]}


class _Balance(HTMLParser):
    """Collects tags left open or closed twice."""

    VOID = {"meta", "br", "img", "link", "hr"}

    def __init__(self):
        super().__init__()
        self.open, self.wrong = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.wrong.append(tag)


def test_summary_by_hand():
    rows = [
        _row("base", "c1", "a", True),
        _row("base", "c1", "b", False),
        _row("base", "c2", "a", True, absent=True),
        _row("base", "c2", "b", False, absent=True),
        _row("base", "c2", "c", False, error="timeout"),
    ]
    (stage,) = summarize(rows)["stages"]
    scores = {name: found and found["mean"] for name, found in stage["scores"].items()}
    assert (stage["n_questions"], stage["n_scored"], stage["n_failed"], stage["n_contracts"]) == (5, 4, 1, 2)
    assert scores["exact_match"] == scores["exact_match_answerable"] == scores["exact_match_absent"] == 0.5
    assert scores["failed_calls"] == 0.2
    assert (scores["cuad_precision"], scores["cuad_recall"]) == (0.5, 0.5)
    assert (scores["absence_precision"], scores["absence_recall"], scores["false_absence_rate"]) == (0.5, 0.5, 0.5)
    assert stage["scores"]["exact_match"]["n"] == 4  # the failed call is no zero
    assert stage["seconds"]["total"] == 2.5


def test_quotes_beside_a_not_found_do_not_count():
    row = _row("base", "c", "a", True) | {"found": False, "answer": NOT_FOUND}
    (stage,) = summarize([row])["stages"]
    assert stage["scores"]["cuad_recall"]["mean"] == 0 and stage["scores"]["cuad_precision"] is None


def test_comparisons_take_what_both_scored_and_are_not_doubled():
    base, prompts, weights = _stage("base", 3), _stage("p", 5, errors=(0,)), _stage("p -> s", 7)
    summary = summarize(base + prompts + weights, resamples=200)
    assert list(dict.fromkeys((c["stage"], c["against"]) for c in summary["comparisons"])) == [
        ("p", "base"),
        ("p -> s", "p"),
        ("p -> s", "base"),
    ]
    first = summary["comparisons"][0]
    assert first["n"] == 28 and first["difference"] > 0
    assert first["mcnemar"]["gains"] - first["mcnemar"]["losses"] == round(first["difference"] * 28)


def test_a_question_twice_is_refused_and_nothing_is_empty():
    with pytest.raises(ValueError, match="twice"):
        summarize(_stage("base", 3) * 2)
    assert summarize([]) == {"stages": [], "comparisons": []}
    assert "no stage" in terminal_table(summarize([]))


def test_the_summary_is_json_even_with_nothing_scored():
    text = json.dumps(summarize(_stage("base", 3, errors=range(8))), allow_nan=False)
    assert json.loads(text)["stages"][0]["scores"]["exact_match"] is None


def test_score_row_of_a_prediction_and_of_a_failure():
    example = {
        "question": "?",
        "contract_id": "c",
        "question_id": "q",
        "category": "k",
        "answer": "Ohio",
        "quotes": ["x"],
    }
    example = type("Example", (SimpleNamespace,), {"__getitem__": lambda self, key: getattr(self, key)})(**example)
    quote = SimpleNamespace(text="x", start=1, end=2)
    prediction = SimpleNamespace(answer="the Ohio.", quotes=[quote], found=True, confidence=0.7)
    row = score_row("base", example, prediction, seconds=1.0)
    assert (row["exact_match"], row["token_f1"], row["quotes"]) == (1.0, 1.0, [{"text": "x", "start": 1, "end": 2}])
    prediction.found = False
    assert score_row("base", example, prediction, seconds=1.0)["exact_match"] == 0.0
    failed = score_row("base", example, None, seconds=1.0, error="timeout")
    assert failed["error"] == "timeout" and failed["exact_match"] is None and failed.keys() == row.keys()


def test_bins_of_stated_probabilities_hold_their_ends():
    table = reliability_table([(0.0, 1.0), (0.2, 1.0), (1.0, 1.0)], bins=5)
    assert [(cell["low"], cell["n"]) for cell in table] == [(0.0, 1), (0.2, 1), (0.8, 1)]


def test_the_calibration_error_by_hand():
    stated = [(0.9, 1.0), (0.9, 0.0), (0.1, 0.0), (0.1, 0.0)]
    assert calibration_error(reliability_table(stated, bins=10)) == pytest.approx((2 * 0.4 + 2 * 0.1) / 4)
    assert calibration_error(reliability_table([], bins=10)) is None


def test_a_report_says_whether_retrieval_knows_what_is_not_there(tmp_path):
    rows = [row | {"p_answered": 0.75 if row["gold_quotes"] else 0.25} for row in _stage("base", 4)]
    found = summarize(rows)["stages"][0]["p_answered"]
    assert {(cell["stated"], cell["came_true"]) for cell in found["table"]} == {(0.75, 1.0), (0.25, 0.0)}
    assert found["calibration_error"] == pytest.approx(0.25)
    heading = "Does retrieval know what is not there?"
    assert heading in _report(tmp_path, [rows]) and heading not in _report(tmp_path / "x", [_stage("base", 4)])


def test_chosen_questions_mix_gains_and_losses_whatever_the_order():
    before, after = _stage("base", 4, contracts=8), _stage("p -> s", 4, contracts=8)
    flipped = [_row("p -> s", r["contract_id"], r["category"], not r["exact_match"]) for r in _stage("base", 6, 8)]
    chosen = choose_questions(before, flipped)
    changes = [new["exact_match"] - old["exact_match"] for old, new in chosen]
    assert (changes.count(1.0), changes.count(-1.0)) == (5, 5)
    assert choose_questions(before[::-1], flipped[::-1]) == chosen
    assert len(choose_questions(before, after)) == 10  # unchanged ones fill up
    assert choose_questions(before, _stage("p -> s", 4, 8, errors=range(8))) == []
    assert choose_questions(_stage("base", 4, 8, errors=range(8)), after) == []


def test_few_losses_leave_their_places_to_gains():
    before = [_row("base", "c", str(i), i == 0) for i in range(12)]
    after = [_row("p -> s", "c", str(i), i != 0) for i in range(12)]
    changes = [new["exact_match"] - old["exact_match"] for old, new in choose_questions(before, after)]
    assert (changes.count(1.0), changes.count(-1.0)) == (9, 1)


def test_the_page_stands_alone_and_escapes_contract_text(tmp_path):
    stages = [_stage("base", 3), _stage("p", 5, errors=(1,)), _stage("p -> s", 7)]
    page = _report(tmp_path, stages, losses=LOSSES)
    assert page.count("<svg") == 2
    assert "sft-1a2b" in page and "sft-copy" not in page  # the program's own copy is not drawn again
    assert "<script" not in page and "&lt;script&gt;" in page
    assert "<b>Ohio" not in page and "laws of &lt;b&gt;Ohio" in page
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import""", page)
    assert "no answer" in page and "turned right" in page
    balance = _Balance()
    balance.feed(page)
    assert not balance.wrong and not balance.open
    assert not re.search(r"\bnan\b|None|Undefined", page)


@pytest.mark.parametrize(
    ("stages", "says"),
    [
        ([], "No stage has been scored"),
        ([_stage("base", 3)], "1 stage: base"),
        ([_stage("base", 3, contracts=1), _stage("p", 5, contracts=1)], "one contract only"),
        ([_stage("base", 3), _stage("p", 5, errors=range(8))], "0 / 32"),
    ],
)
def test_thin_runs_still_give_a_page(tmp_path, stages, says):
    page = _report(tmp_path, stages, status="failed")
    assert says in page and "This run is failed" in page and "it broke" in page
    assert not re.search(r"\bnan\b|None", page)


def test_the_same_run_gives_the_same_page(tmp_path):
    stages = [_stage("base", 3), _stage("p -> s", 7)]
    assert _report(tmp_path / "a", stages) == _report(tmp_path / "b", stages)


@pytest.mark.parametrize("losses", [{"history": [{"step": 1}]}, {"base": "local/x"}, [{"step": 1, "loss": 2.0}]])
def test_damaged_losses_are_named(tmp_path, losses):
    with pytest.raises(RunError, match="training.json"):
        _report(tmp_path, [_stage("base", 3)], losses=losses)


def test_a_training_without_a_step_has_no_curve(tmp_path):
    page = _report(tmp_path, [_stage("base", 3, contracts=1)], losses={"history": []})
    assert "Training loss" not in page


def test_the_header_says_what_was_kept_and_what_the_steps_are(tmp_path):
    stages = [_stage("base", 3, contracts=1)]
    page = _report(tmp_path / "a", stages, chosen="p -> s")
    assert "the program after p -&gt; s (best on the validation contracts)" in page
    assert STEPS["p"] in page and STEPS["s"] in page
    page = _report(tmp_path / "b", stages, chosen="base", config={"recipe": "s"})
    assert "base, the program before any step (best on" in page
    assert STEPS["p"] not in page and STEPS["s"] in page
    page = _report(tmp_path / "c", stages, chosen="p", config={"run": "runs/first"})
    assert "the program after p (of the run runs/first)" in page
    assert "<dt>kept</dt>" not in _report(tmp_path / "d", stages)


def test_terminal_table_shows_scores_and_gaps():
    table = terminal_table(summarize(_stage("base", 4) + _stage("p", 8, errors=range(8)), resamples=200))
    assert (
        "base" in table
        and "Exact match, all questions" in table
        and "–" in table
        and max(map(len, table.split("\n"))) <= 120
    )
