import os
from itertools import pairwise
from pathlib import Path

import pytest

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.passages import cut_passages
from corpora.types import Contract

LONG = "The Supplier shall deliver the Goods to the Buyer at the place named in the Order, free of any charge or lien. "


def cut(text, max_chars=600):
    """Passages of a text, checked to be a partition of it."""
    contract = Contract("c", text)
    passages = cut_passages(contract, max_chars=max_chars)
    assert "".join(passage.text for passage in passages) == text
    assert passages[0].start == 0 and passages[-1].end == len(text)
    assert all(before.end == after.start for before, after in pairwise(passages))
    for passage in passages:
        assert passage.text == text[passage.start : passage.end] and 0 < len(passage.text) <= max_chars
        assert passage.id == f"c:{passage.start}-{passage.end}" and passage.contract_id == "c"
    return passages


def headings(text):
    return [passage.heading for passage in cut(text)]


def test_a_numbered_paragraph_is_a_passage_and_a_part_heading_goes_with_the_first():
    passages = cut(f"ARTICLE IV. TERM\n\n4.1 Duration. {LONG * 2}\n\n4.2 {LONG * 2}\n\n(a) {LONG * 2}\n\n{LONG * 2}")
    assert [passage.text[:12] for passage in passages] == [
        "ARTICLE IV. ",
        "4.2 The Supp",
        "(a) The Supp",
        "The Supplier",
    ]
    assert [passage.heading for passage in passages] == [
        "4.1 Duration",
        "ARTICLE IV. TERM 4.2",
        "ARTICLE IV. TERM 4.2 (a)",
        "ARTICLE IV. TERM 4.2 (a)",
    ]


@pytest.mark.parametrize(
    ("opening", "heading"),
    [
        ("Article 4\n\n", "Article 4"),
        ("Section 12. Governing Law. ", "Section 12. Governing Law"),
        ("Section 3.2 Orders: ", "Section 3.2 Orders"),
        ("5.2 Renewal Term. ", "5.2 Renewal Term"),
        ("5.2 ", "5.2"),
        ("(a) ", "(a)"),
        ("§ 7 (2) ", "§ 7 (2)"),
        ("§ 4 Secrecy\n", "§ 4 Secrecy"),
        ("Art. 5 (2) ", "Art. 5 (2)"),
        ("12. Notices\n\n", "12. Notices"),
        ("12. How to end it\n", "12. How to end it"),
        ("GOVERNING LAW\n\n", "GOVERNING LAW"),
        ("ASSIGNMENT. ", "ASSIGNMENT"),
        ("Governing Law. ", "Governing Law"),
        ("SCHEDULE A\n\n", "SCHEDULE A"),
        ("A.2 RENEWAL: ", "A.2 RENEWAL"),
        ("II.1. Of Secrets. - ", "II.1. Of Secrets"),
        ("", ""),
        ("James M. Smith and ", ""),
        ("The Buyer. ", "The Buyer"),
    ],
)
def test_headings(opening, heading):
    before, clause = cut(f"{LONG * 2}\n\n{opening}{LONG * 2}")
    assert (before.heading, clause.heading) == ("", heading)
    assert clause.text.startswith(opening + "The Supplier")


def test_clauses_that_begin_inside_a_line_are_passages():
    flat = f"10. 4 {LONG * 2}  12. 5   {LONG * 2} 13     ASSIGNMENT   13. 1   {LONG * 2}".replace("\n", " ")
    assert headings(flat) == ["10. 4", "12. 5", "13 ASSIGNMENT 13. 1"]


def test_a_reference_in_wrapped_text_begins_no_clause():
    wrapped = f"2.1 Fees. {LONG}\nThe fees under\nSection 5.2 and under\n7.1 are due at once."
    assert headings(wrapped) == ["2.1 Fees"]


def test_small_neighbours_are_merged_and_page_numbers_stay_with_the_page():
    assert len(cut("1.1 One is one.\n\n1.2 Two is two.\n\n1.3 Three is three.")) == 1
    assert len(cut(f"1.1 {LONG * 2}\n\n- 7 -\n\nand goes on in the middle of the sentence.\n\n1.2 {LONG * 2}")) == 2
    assert len(cut("Two words.\n\n" * 2, max_chars=15)) == 2


def test_long_paragraphs_are_cut_at_sentence_ends_into_even_pieces():
    passages = cut(f"7.3 Delivery. {LONG * 12}")
    assert all(passage.text.endswith(". ") and len(passage.text) > 300 for passage in passages)
    assert {passage.heading for passage in passages} == {"7.3 Delivery"}


def test_without_sentences_at_spaces_and_without_spaces_anywhere():
    assert all(passage.text.endswith(" ") for passage in cut("word " * 1000)[:-1])
    assert len(cut("a" * 10_000)) == 17


@pytest.mark.parametrize(
    "text",
    ["\n" * 5000, " \n\t\r\n" * 700, "x", "\n\nx", " " * 3000 + "x" + " " * 3000, "ABC\n" * 900, "(a) " * 900,
     "1.\n\n" * 900, "§ 1\n" * 500, "Ünïcode ✓ 中文字 " * 300, "ABC DEF. " * 500, "line\r\n" * 900,
     "\u2028\f\u00a0" * 500]
)  # fmt: skip
@pytest.mark.parametrize("max_chars", [1, 7, 600])
def test_the_cut_is_a_partition_of_any_text(text, max_chars):
    cut(text, max_chars)


@pytest.mark.parametrize(
    "unit", [" ", "\n", "a", "ABC\n", "1. 2. ", "(a) ", ". ", "1.", "x\n" + " " * 300, "- ", "A \n"]
)
def test_time_is_linear_in_the_text(unit, seconds):
    small, large = (Contract("c", unit * (n_chars // len(unit))) for n_chars in (20_000, 160_000))
    # Eight times the text takes eight times as long, or 64 times if it is quadratic; the constant is for the clock.
    assert seconds(cut_passages, large) < 32 * seconds(cut_passages, small) + 0.2


def test_refuses_an_empty_text_and_no_room():
    with pytest.raises(CorpusError, match="contract 'c' has no text"):
        cut_passages(Contract("c", ""))
    with pytest.raises(CorpusError, match="max_chars is 0"):
        cut_passages(Contract("c", "text"), max_chars=0)


def test_real_contracts():
    path = Path(os.environ.get("EVERGREEN_CUAD", Path(__file__).parents[3] / "shared/cuad/CUADv1_train.json"))
    if not path.exists():
        pytest.skip(f"no CUAD at {path}: set EVERGREEN_CUAD to CUADv1_train.json")
    passages = [passage for contract in read_cuad(path).contracts[::8] for passage in cut(contract.text)]
    assert sum(len(passage.text) < 150 for passage in passages) < 0.05 * len(passages)
    assert sum(bool(passage.heading) for passage in passages) > 0.9 * len(passages)


def words(passages):
    return [len(f"{passage.heading} {passage.text}".split()) for passage in passages]


def test_no_passage_counts_more_tokens_than_allowed_and_the_rest_is_cut_as_before():
    text = f"1.1 Fees. {LONG}\n\n1.2 {'a b c d e f g h ' * 30}\n\n1.3 Term. {LONG}"
    before = cut(text)
    bounded = cut_passages(Contract("c", text), count_tokens=words, max_tokens=50)
    assert max(words(before)) > 50 >= max(words(bounded))
    assert "".join(passage.text for passage in bounded) == text
    kept = [passage for passage, n in zip(before, words(before), strict=True) if n <= 50]
    assert len(kept) == 2 and set(kept) < set(bounded)


def test_one_character_above_the_bound_is_an_error_and_no_endless_cutting():
    with pytest.raises(CorpusError, match="counts 9 tokens; 8 are allowed"):
        cut_passages(Contract("c", "x" * 700), count_tokens=lambda passages: [9] * len(passages), max_tokens=8)
    for bound in ({"max_tokens": 8}, {"count_tokens": words}, {"max_tokens": 0, "count_tokens": words}):
        with pytest.raises(CorpusError, match="max_tokens is"):
            cut_passages(Contract("c", "text"), **bound)


def test_overlap_reaches_back_within_a_clause_and_not_over_its_beginning():
    text = f"7.3 Delivery. {LONG * 12}\n\n7.4 Fees. {LONG * 2}"
    plain = cut_passages(Contract("c", text), max_chars=600 - 150)
    passages = cut_passages(Contract("c", text), overlap_chars=150)
    assert [passage.end for passage in passages] == [passage.end for passage in plain]
    assert any(passage.text.startswith("7.4 Fees") for passage in passages)
    for before, passage in pairwise(passages):
        assert passage.text == text[passage.start : passage.end] and len(passage.text) <= 600
        if passage.text.startswith("7.4"):
            assert passage.start == before.end
        else:
            assert before.start < passage.start and 0 < before.end - passage.start <= 150
            assert passage.text.startswith("The Supplier")
    unbroken = cut_passages(Contract("c", "a" * 2000), overlap_chars=100)
    assert [before.end - after.start for before, after in pairwise(unbroken)] == [100] * (len(unbroken) - 1)
    with pytest.raises(CorpusError, match="overlap_chars is 600"):
        cut_passages(Contract("c", "text"), overlap_chars=600)


def test_heading_paths_lead_from_the_outermost_heading_that_fits():
    text = f"ARTICLE IV. TERM\n\n4.1 Duration. {LONG * 2}\n\n(a) {LONG * 2}\n\n{LONG * 2}\n\n4.2 End. {LONG * 2}"
    passages = cut_passages(Contract("c", text), heading_path=True)
    assert [passage.heading for passage in passages] == [
        "ARTICLE IV. TERM > 4.1 Duration",
        "ARTICLE IV. TERM > 4.1 Duration > (a)",
        "ARTICLE IV. TERM > 4.1 Duration > (a)",
        "ARTICLE IV. TERM > 4.2 End",
    ]
    assert [(p.start, p.end) for p in passages] == [(p.start, p.end) for p in cut(text)]
    deep = "".join(f"{'1.' * n}1 {'Terms ' * 16}\n\n" for n in range(1, 5)) + f"(a) {LONG * 3}"
    (*_, last) = cut_passages(Contract("c", deep), heading_path=True, max_chars=400)
    assert last.heading.endswith("(a)") and len(last.heading) <= 200 < len(deep) - len(LONG) * 3
