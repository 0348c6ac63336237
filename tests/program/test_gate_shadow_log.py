"""Pairs of shadow mode on disk, and the command that compares them."""

from types import SimpleNamespace

import pytest
import typer

from corpora.types import Passage, Quote
from program.gate import commands
from program.gate.shadow import ShadowAnswer, ShadowPair
from program.gate.shadow_log import read_pairs, recorder
from program.renewal import shadowing

TEXT = "This Agreement is governed by the laws of Ohio."
OHIO = Quote("Ohio", "c", 42, 46)


def pair(question="Law?", live="Ohio", candidate="Ohio", quote=OHIO, error=None):
    passages = (Passage("c:0-47", "c", 0, 47, TEXT),)
    sides = [ShadowAnswer(answer, True, (one,), passages, 0.5) for answer, one in ((live, OHIO), (candidate, quote))]
    if error:
        sides[1] = ShadowAnswer("", False, (), (), 0.5, error)
    return ShadowPair(question, "c", *sides)


def test_pairs_come_back_as_they_were_and_a_torn_line_is_passed_over(tmp_path):
    path = tmp_path / "shadow" / "0002.jsonl"
    assert read_pairs(path, {}) == []
    record = recorder(path)
    told = [pair(), pair("What\n\u2028else?", candidate="“Utah”", error="TimeoutError"), pair("Third?")]
    record(told[0])
    with path.open("a") as file:
        file.write('{"question": "torn')
    for one in told[1:]:
        recorder(path)(one)
    assert read_pairs(path, {"c": TEXT}) == told
    recorder(path, "0001-ab")(pair("Fourth?"))
    assert [one.question for one in read_pairs(path, {}, "0001-ab")] == ["Fourth?"]
    assert read_pairs(path, {})[0].live.passages == () and path.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(("quote", "code"), [(OHIO, 0), (Quote("Utah", "c", 42, 46), 1)])
def test_a_quote_that_stands_nowhere_keeps_a_candidate_back(tmp_path, monkeypatch, capsys, quote, code):
    release = SimpleNamespace(id="0002-ab", path=tmp_path)
    stored = SimpleNamespace(contract=SimpleNamespace(id="c", text=TEXT))
    monkeypatch.setattr("program.releases.store.ReleaseStore.open", lambda root: SimpleNamespace(get=lambda _: release))
    monkeypatch.setattr(shadowing, "read_retrieval", lambda path: SimpleNamespace(index=path))
    monkeypatch.setattr(shadowing, "read_contracts", lambda folder: [stored])
    record = recorder(tmp_path / "shadow" / "0002-ab.jsonl")
    for i in range(12):
        record(pair(f"Question {i}?", quote=quote if i == 7 else OHIO))
    with pytest.raises(typer.Exit) as left:
        commands.shadow(tmp_path, "0002", min_pairs=10)
    said = capsys.readouterr().out
    assert left.value.exit_code == code and "12 questions" in said and (", failed:" in said) == bool(code)
