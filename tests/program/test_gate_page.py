"""The gate's page: whole, offline, escaped, and silent on what nobody should know yet."""

import json
import re
from dataclasses import replace

import pytest

from program.gate.decide import decide
from program.gate.page import decision_lines, read_decision, read_decisions, write_decision
from program.gate.types import Check, Evidence, GateError, GateRules, Side

PAYLOAD = '<img src=x onerror="alert(1)"><script>alert(1)</script>{{7*7}}&amp;'
TEXT = f"{PAYLOAD} Ohio"
N_CONTRACTS = 20
RULES = GateRules(detectable=0.1, discordance=0.2, max_decisions=1, resamples=300)


def rows(stage, right, n):
    return [
        {
            "stage": stage, "contract_id": f"c{i % N_CONTRACTS} {PAYLOAD}", "question_id": f"q{i} {PAYLOAD}",
            "category": f"Law {PAYLOAD}", "question": f"Which? {PAYLOAD}", "gold_answer": f"Ohio {PAYLOAD}",
            "gold_quotes": [], "answer": f"{'Ohio' if right(i) else 'Iowa'} {PAYLOAD}", "found": True,
            "quotes": [{"text": TEXT, "start": 0, "end": len(TEXT)}], "confidence": None, "p_answered": None,
            "error": None, "exact_match": float(right(i)), "token_f1": 0.0, "seconds": 0.1,
        }
        for i in range(n)
    ]  # fmt: skip


def made(n=400, **given):
    texts = {f"c{i} {PAYLOAD}": TEXT for i in range(N_CONTRACTS)}
    sides = {
        "incumbent": Side(f"0001 {PAYLOAD}", rows("live", lambda i: bool((i // 20) % 2), n), 100),
        "candidate": Side(f"0002 {PAYLOAD}", rows("new", lambda i: bool((i // 20) % 4) or i % 31 == 0, n), 100),
    }
    skill = (rows("then", lambda i: i % 2, 200), rows("new", lambda i: i % 2, 200))
    shadow = [Check("shadow_judge", True, 0.0, -0.01, 0.01, (-0.05, None), f"no worse {PAYLOAD}")]
    evidence = Evidence(**sides | {"texts": texts, "skills": {f"old $x$ {PAYLOAD}": skill}, "shadow": shadow} | given)
    return decide(evidence, RULES), evidence


def test_the_page_escapes_all_that_others_wrote_and_loads_nothing(tmp_path):
    decision, evidence = made()
    page = write_decision(tmp_path / "d1", decision, evidence).read_text(encoding="utf-8")
    assert decision.verdict == "promote"
    assert PAYLOAD not in page and "<script" not in page and "<img" not in page
    assert page.count("&lt;img src=x") > 20 and "{{7*7}}" in page
    assert not re.search(r'(?:src|href)\s*=\s*["\']?(?:https?:|//)|@import|url\((?!#)', page.replace("xlink:href", ""))
    assert "Promote: shown to be better" in page and "10 changed answers" in page
    assert page.count("<article>") == 10 and "turned right" in page
    for check in decision.checks:
        assert check.name in ("gain", "skill") or check.value is not None
    assert page.count('<th scope="row">') == len(decision.checks)


def test_a_decision_is_read_back_and_counted(tmp_path):
    decision, evidence = made()
    write_decision(tmp_path / "d1", decision, evidence)
    write_decision(tmp_path / "d2", replace(decision, id="other"), evidence)
    assert read_decision(tmp_path / "d1" / "decision.json") == decision
    assert [one.id for one in read_decisions(tmp_path)] == [decision.id, "other"]
    (tmp_path / "d2" / "decision.json").write_text("{", encoding="utf-8")
    with pytest.raises(GateError, match="d2.decision.json: this is no decision"):
        read_decisions(tmp_path)


def test_changed_answers_are_not_shown_before_the_gain_may_be_looked_at(tmp_path):
    decision, evidence = made(n=40)
    page = write_decision(tmp_path, decision, evidence).read_text(encoding="utf-8")
    assert decision.verdict == "undecided" and "<article>" not in page and "turned right" not in page
    assert "The gain was not looked at" in page and "Gain on the test set" not in page


def test_a_refusal_names_its_reasons_first(tmp_path):
    poisoned = rows("new", lambda i: True, 400)
    poisoned[7]["quotes"] = [{"text": f"invented {PAYLOAD}", "start": 0, "end": 5}]
    decision, evidence = made(candidate=Side("0002", poisoned, 100))
    page = write_decision(tmp_path, decision, evidence).read_text(encoding="utf-8")
    assert "Refuse: the live program stays." in page and "invented &lt;img" in page and PAYLOAD not in page
    lines = decision_lines(decision)
    assert lines[1].startswith("1 of 400 quotes do not stand") and any("failed" in line for line in lines[2:])


def test_a_decision_without_anything_to_plot(tmp_path):
    broken = [one | {"error": "TimeoutError", "exact_match": None} for one in rows("new", lambda i: True, 400)]
    decision, evidence = made(candidate=Side("0002", broken, 100), skills={})
    page = write_decision(tmp_path, decision, evidence).read_text(encoding="utf-8")
    assert decision.verdict == "undecided" and "<figure>" not in page and "mend the calls" in page
    assert json.loads((tmp_path / "decision.json").read_text(encoding="utf-8"))["n"] == 0
