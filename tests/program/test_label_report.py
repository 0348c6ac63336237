import json
import os
import re
from html.parser import HTMLParser
from random import Random

import pytest

from corpora.errors import CorpusError
from corpora.labels.types import Draft, Record
from corpora.types import Contract, Corpus, Label, Question, Span
from program import label_figures as figures_module
from program.asking import Tally
from program.label_figures import label_figures
from program.label_precision import judge_label
from program.label_report import report_lines, write_label_report
from program.self_instruct import RoundReport

TEXT = "".join(f"Clause {i:02d} is governed by the laws of state {i:02d}. " for i in range(20))
CONTRACTS = {name: Contract(name, TEXT) for name in ("c0", "c1", "c2", "c3")}
CLAUSE_CHARS = len(TEXT) // 20


def _label(contract, category, spans=(), answer=None, question=None):
    text = question or f"What about {category}?"
    return Label(Question(f"{contract}__{category}", contract, category, text), spans, answer)


def _clause(i, cut=0):
    return Span(i * CLAUSE_CHARS, (i + 1) * CLAUSE_CHARS - cut)


def _record(label, method="answer", source="synthetic"):
    return Record(Draft(label, method, "a model"), source, f"{label.question.id}/{method}")


def _report(number=1, proposed=None, kept=None, tally=None):
    return RoundReport(
        number,
        proposed or {"answer, absent": 40, "answer, found": 60, "project, found": 20},
        (("verbatim", 120, 100), ("confidence", 100, 30)),
        (("confidence", "low confidence", 70), ("verbatim", "span outside", 15), ("verbatim", "no such answer", 5)),
        kept or {"answer, absent": 10, "answer, found": 12, "project, found": 8},
        tally or Tally(200, 20, 3, 2),
    )


def _figures(records, reports=(), **given):
    return label_figures(reports, records, CONTRACTS, **({"n_human": 10, "seconds": 60.0} | given))


def _gold(*labels, text=TEXT):
    return Corpus("gold", tuple(Contract(name, text) for name in CONTRACTS), labels)


class _Balance(HTMLParser):
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


def _page(tmp_path, figures):
    page = write_label_report(tmp_path / "out", figures).read_text()
    balance = _Balance()
    balance.feed(page)
    assert not balance.wrong and not balance.open
    assert not re.search(r"\bnan\b|None|Undefined", page)
    assert not re.search(r"""(src|href)=["']?(https?:)?//|url\(["']?http|@import""", page)
    return page


@pytest.mark.parametrize(
    ("spans", "answer", "gold_spans", "gold_answer", "verdict"),
    [
        ((), None, (), None, (True, None, None)),
        ((), None, (_clause(1),), None, (False, None, None)),
        ((_clause(1),), "Ohio", (), None, (False, False, False)),
        ((_clause(1),), "Ohio", (), "Ohio", (False, False, False)),
        ((_clause(1),), "the Ohio.", (_clause(9),), "Ohio", (True, True, False)),
        ((_clause(1),), None, (_clause(1),), "Ohio", (True, False, True)),
        ((_clause(1),), None, (_clause(1),), None, (True, True, True)),
        ((_clause(1), _clause(5)), "x", (_clause(1),), "y", (False, False, False)),  # each span has to be right
        ((_clause(1),), "x", (_clause(1), _clause(5)), "y", (True, False, True)),
        ((Span(0, 10),), "x", (Span(5, 15),), "y", (False, False, False)),  # 5 of 15
        ((Span(0, 10),), "x", (Span(0, 20),), "y", (True, False, True)),  # 10 of 20
        ((Span(0, 10),), "x", (Span(0, 21),), "y", (False, False, False)),  # 10 of 21
    ],
)
def test_what_gold_says_of_a_label(spans, answer, gold_spans, gold_answer, verdict):
    own, gold = _label("c0", "k", spans, answer), _label("c0", "k", gold_spans, gold_answer)
    found = judge_label(own, gold, TEXT)
    assert (found.right, found.answer, found.span) == verdict


def test_precision_by_hand():
    records = [
        _record(_label("c0", "law", (_clause(1),), "Ohio")),  # right by answer and spans
        _record(_label("c1", "law", (_clause(1),), "Ohio")),  # wrong place, right answer
        _record(_label("c2", "law", (_clause(1),), "Ohio"), "project"),  # wrong
        _record(_label("c0", "term")),  # absent, right
        _record(_label("c1", "term")),  # absent, wrong
        _record(_label("c2", "term", question="an invented one")),
    ]
    gold = _gold(
        _label("c0", "law", (_clause(1),), "Ohio"),
        _label("c1", "law", (_clause(7),), "Ohio"),
        _label("c2", "law", (_clause(7),), "Iowa"),
        _label("c0", "other name", question="What  about\nterm?"),  # white space and the category's name do not count
        _label("c1", "term", (_clause(3),)),
        _label("c3", "law"),
    )
    precision = _figures(records, gold=gold)["precision"]
    assert (precision["n_gold"], precision["n_no_gold"]) == (5, 1)
    assert precision["overall"]["right"]["mean"] == pytest.approx(3 / 5)
    assert precision["overall"]["right"]["n_clusters"] == 3
    assert precision["found"]["right"]["mean"] == precision["found"]["answer"]["mean"] == pytest.approx(2 / 3)
    assert precision["found"]["span"]["mean"] == precision["overall"]["span"]["mean"] == pytest.approx(1 / 3)
    assert precision["absent"]["right"]["mean"] == 0.5 and precision["absent"]["answer"] is None
    assert [(row["category"], row["n"]) for row in precision["by_category"]] == [("law", 3), ("term", 2)]
    methods = {row["method"]: row for row in precision["by_method"]}
    assert methods["answer"]["right"]["mean"] == 0.75 and methods["project"]["right"]["mean"] == 0.0
    assert methods["project"]["right"]["low"] is None  # one contract shows no spread


def test_intervals_draw_contracts_not_labels():
    # Each contract is all right or all wrong: 40 labels, but no more than 4 things to learn from.
    records = [_record(_label(f"c{i}", f"k{j}")) for i in range(4) for j in range(10)]
    gold = _gold(*(_label(f"c{i}", f"k{j}", (_clause(1),) * (i % 2)) for i in range(4) for j in range(10)))
    right = _figures(records, gold=gold)["precision"]["overall"]["right"]
    assert (right["mean"], right["low"], right["high"]) == (0.5, 0.0, 1.0)


def test_gold_that_cannot_be_compared_is_refused():
    records = [_record(_label("c0", "law", (_clause(1),)))]
    with pytest.raises(CorpusError, match="another text"):
        _figures(records, gold=_gold(_label("c0", "law"), text=" " + TEXT))
    with pytest.raises(CorpusError, match="two labels"):
        _figures(records, gold=_gold(_label("c0", "law"), _label("c0", "law", (_clause(2),))))
    with pytest.raises(CorpusError, match="not given: elsewhere"):
        _figures([_record(_label("elsewhere", "law"))])
    twice = _figures(records, gold=_gold(_label("c0", "law"), _label("c0", "law")))
    assert twice["precision"]["n_gold"] == 1


def test_the_funnel_says_what_went_and_why():
    figures = _figures([], [_report(1), _report(2)])
    assert [one["round"] for one in figures["rounds"]] == [1, 2]
    first, second = figures["rounds"][0]["funnel"]
    assert first == {
        "filter": "verbatim", "in": 120, "out": 100, "dropped": 20,
        "reasons": {"span outside": 15, "no such answer": 5},
    }  # fmt: skip
    assert second["reasons"] == {"low confidence": 70}
    assert (figures["rounds"][0]["n_proposed"], figures["rounds"][0]["n_kept"]) == (120, 30)


def test_kept_by_method_kind_and_human_label():
    records = [
        _record(_label("c0", "law", (_clause(1),))),
        _record(_label("c0", "law", (_clause(2),)), "project"),
        _record(_label("c1", "term"), "earlier"),
        _record(_label("c1", "law", (_clause(3),)), "human", source="human"),
    ]
    figures = _figures(records, [_report()], n_human=2)
    assert (figures["n_labels"], figures["labels_per_human"], figures["n_contracts"]) == (3, 1.5, 2)
    assert figures["kept"] == {"found": 2, "absent": 1}
    rows = {(row["method"], row["kind"]): (row["proposed"], row["passed"], row["kept"]) for row in figures["by_method"]}
    assert rows == {
        ("answer", "absent"): (40, 10, 0), ("answer", "found"): (60, 12, 1), ("project", "found"): (20, 8, 1),
        ("earlier", "absent"): (0, 0, 1),
    }  # fmt: skip
    assert figures["by_category"] == [
        {"category": "law", "found": 2, "absent": 0}, {"category": "term", "found": 0, "absent": 1},
    ]  # fmt: skip
    assert _figures(records, n_human=0)["labels_per_human"] is None


def test_diversity_by_hand():
    same = [_record(_label(f"c{i}", "law", (_clause(1),))) for i in range(2)]
    apart = [_record(_label("c0", "term", (Span(0, 6),))), _record(_label("c1", "term", (Span(13, 21),)))]
    diversity = _figures(same + apart)["diversity"]
    assert TEXT[0:6] == "Clause" and TEXT[13:21] == "governed"
    assert (diversity["n_categories"], diversity["n_questions"]) == (2, 2)
    assert (diversity["n_quotes"], diversity["distinct_quotes"]) == (4, 0.75)
    assert (diversity["n_pairs"], diversity["rouge_l"]) == (2, 0.5)  # the same, and nothing shared
    assert (diversity["category_bits"], diversity["even_categories"]) == (1.0, 2.0)
    one = _figures(same)["diversity"]
    assert one["category_bits"] == 0.0 and one["even_categories"] == 1.0
    assert _figures([_record(_label("c0", "law"))])["diversity"]["rouge_l"] is None


def test_many_quotes_are_compared_by_a_seeded_draw():
    rng = Random(0)
    records = [
        _record(_label("c0", "law", (Span(at := rng.randrange(900), at + rng.randrange(20, 90)),), question=f"q{i}"))
        for i in range(60)
    ]
    first, again, other = (_figures(records, seed=seed)["diversity"] for seed in (0, 0, 1))
    assert first["n_pairs"] == figures_module.PAIRS_COMPARED == 500
    assert first == again and first["rouge_l"] != other["rouge_l"]


def test_calls_time_and_price_are_set_against_what_the_rounds_kept():
    reports = [_report(1), _report(2, kept={"answer, found": 20}, tally=Tally(100, 5, 1, 0))]
    cost = _figures([_record(_label("c0", "law"))], reports, seconds=120.0, price=0.5)["cost"]
    assert (cost["calls"], cost["again"], cost["failed"], cost["unreadable"]) == (300, 25, 4, 2)
    assert (cost["n_kept"], cost["labels_per_minute"], cost["seconds_per_1000"]) == (50, 25.0, 2400.0)
    assert (cost["calls_per_1000"], cost["price_per_1000"]) == (6000.0, 10.0)
    nothing = _figures([], seconds=0.0)["cost"]
    assert nothing["labels_per_minute"] is nothing["seconds_per_1000"] is nothing["price_per_1000"] is None


def _full():
    evil = "<script>alert(1)</script> & $5 or $x_{"
    records = [_record(_label(f"c{i}", name, (_clause(i),))) for i in range(4) for name in ("law", evil)]
    records += [_record(_label(f"c{i}", "term"), "<b>own</b>") for i in range(3)]
    gold = _gold(
        *(_label(f"c{i}", name, (_clause(i if i else 9),), "x") for i in range(4) for name in ("law", evil)),
        *(_label(f"c{i}", "term") for i in range(2)),
    )
    odd = RoundReport(
        2, {"answer, found": 2}, (("<i>odd</i>", 2, 1),), (("<i>odd</i>", "a <u>reason</u>", 1),), {"answer, found": 1},
        Tally(2),
    )  # fmt: skip
    return _figures(records, [_report(), odd], gold=gold, price=1.25)


def test_the_page_stands_alone_and_escapes_all_that_is_given(tmp_path):
    figures = _full() | {"settings": {"filters": ["verbatim", "<s>"], "labeller": None}}
    page = _page(tmp_path, figures)
    assert page.count("<svg") == 3
    assert not re.search(r"<(script|b|i|u|s)>(alert|own|odd|reason|<)", page)
    for escaped in ("&lt;script&gt;", "&lt;b&gt;own", "&lt;i&gt;odd", "a &lt;u&gt;reason", "verbatim, &lt;s&gt;"):
        assert escaped in page
    assert "$5 or $x_{, n=4</text>" in page  # a dollar is no formula
    assert "1 label is of questions that the gold does not have" in page
    assert "100 of 120" in page and "31 of 102" not in page
    assert "price 40.32" in page  # 1.25 for 31


def test_the_json_beside_the_page_is_the_figures_and_makes_the_same_page(tmp_path):
    figures = _full()
    page = _page(tmp_path, figures)
    read = json.loads((tmp_path / "out" / "label_report.json").read_text())
    assert read == figures
    assert _page(tmp_path / "again", read) == page
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"label_report.html", "label_report.json"}


@pytest.mark.parametrize("name", ["label_report.html", "label_report.json"])
def test_a_file_that_cannot_be_written_leaves_the_last_one(tmp_path, monkeypatch, name):
    _page(tmp_path, _full())
    before = (tmp_path / "out" / name).read_text()
    replace = os.replace

    def full(source, target):
        if target.name == name:
            raise OSError("full")
        replace(source, target)

    monkeypatch.setattr("program.runs.os.replace", full)
    with pytest.raises(OSError, match="full"):
        write_label_report(tmp_path / "out", _figures([]))
    assert (tmp_path / "out" / name).read_text() == before
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_nothing_kept_and_nothing_known_is_said(tmp_path):
    page = _page(tmp_path / "a", _figures([]))
    for said in ("No label was kept", "No round was run", "no gold was given", "Nothing was kept"):
        assert said in page
    assert "<svg" not in page
    assert "the gold has none of these questions" in _page(
        tmp_path / "b", _figures([_record(_label("c0", "law"))], gold=_gold(_label("c1", "law")))
    )
    none_kept = RoundReport(1, {}, (("verbatim", 0, 0),), (), {}, Tally())
    assert "0 of 0" in _page(tmp_path / "c", _figures([], [none_kept]))


def test_many_categories_are_cut_and_said_to_be(tmp_path):
    records = [_record(_label("c0", f"kind {i}", question=f"q{i}")) for i in range(50)]
    gold = _gold(*(_label("c0", f"kind {i}", question=f"q{i}") for i in range(50)))
    page = _page(tmp_path, _figures(records, gold=gold))
    assert "the 45 largest of 50 categories; 5 labels in the others" in page
    assert "The 45 largest of 50 categories." in page


def test_lines_for_the_terminal():
    lines = report_lines(_full())
    assert len(lines) <= 12 and all(len(line) < 200 for line in lines)
    assert lines[0].startswith(
        "11 labels kept (8 found, 3 absent) on 4 contracts, 1.1 for each of people's 10; answer 8"
    )
    assert lines[1] == "round 1: 120 proposed, 30 kept (verbatim -20, confidence -70)"
    assert "precision, %: 80.0 [" in lines[3] and "labels without gold: 1" in lines[3]
    assert "by answer 0.0" in lines[4] and "by spans 75.0" in lines[4]
    assert lines[-1].startswith("60 s, 31.0 labels a minute")
    empty = report_lines(_figures([]))
    assert empty[:3] == ["no label was kept", "no round was run", "precision: not known, no gold was given"]
    assert "precision: not known, labels without gold: 1" in report_lines(
        _figures([_record(_label("c0", "law"))], gold=_gold())
    )
