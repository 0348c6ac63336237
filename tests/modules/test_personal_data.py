import pytest

from corpora.labels.types import Draft
from corpora.synthetic.house import house_names
from corpora.synthetic.writer import write_corpus
from corpora.types import Label, Question, Span
from modules.personal_data import find_pii, mask_pii, masked, pii

TEXT = "Notices go to legal@acme.example, the fee to DE89 3704 0044 0532 0130 00."


def draft(question="Where do notices go?", answer=None, span=(0, 10)):
    return Draft(Label(Question("q", "c", "any", question), (Span(*span),), answer), "write", "a model")


@pytest.mark.parametrize(
    "text, kind, found",
    [
        ("write to jane.doe+x@legal.acme.co.uk.", "email", "jane.doe+x@legal.acme.co.uk"),
        ("account DE89 3704 0044 0532 0130 00.", "iban", "DE89 3704 0044 0532 0130 00"),
        ("PAY TO GB82WEST12345698765432 AND NO OTHER", "iban", "GB82WEST12345698765432"),
        ("PAY TO DE89 3704 0044 0532 0130 00 AND NO OTHER", "iban", "DE89 3704 0044 0532 0130 00"),
        ("card 4111 1111 1111 1111, valid", "card", "4111 1111 1111 1111"),
        ("card 4111111111111111", "card", "4111111111111111"),
        ("card 3782-822463-10005", "card", "3782-822463-10005"),
        ("SSN 536-90-4399.", "ssn", "536-90-4399"),
        ("mail 212-555-0147@fax.example", "email", "212-555-0147@fax.example"),
        ("call (212) 555-0147.", "phone", "(212) 555-0147"),
        ("call 212.555.0147 now", "phone", "212.555.0147"),
        ("call 1-212-555-0147 now", "phone", "1-212-555-0147"),
        ("call +44 20 7946 0958 now", "phone", "+44 20 7946 0958"),
    ],
)
def test_personal_data_is_found_and_masked(text, kind, found):
    start = text.index(found)
    assert find_pii(text) == [(kind, start, start + len(found))]
    assert mask_pii(text) == text.replace(found, f"[{kind.upper()}]")


@pytest.mark.parametrize(
    "text",
    [
        "Elm Telecom plc and Jane Doe, its Chief Executive Officer",
        "Section 10.2.3 as of 2019-01-15, $3,500,000.00, 1,234,567,890 units, file 001-34756",
        "card 4111 1111 1111 1112",
        "a table of 62 23 78 21 11 41 133 42 5 4",
        "number 000-12-3456",
        "DE89 3704 0044 0532 0130 01",
        "the 2008-2009 and 100-200-300 series",
        "",
    ],
)
def test_names_amounts_and_numbers_that_break_their_rule_are_none(text):
    assert find_pii(text) == [] and mask_pii(text) == text


def test_several_in_one_text_are_masked_in_place():
    assert mask_pii("a@b.example or (212) 555-0147 or c@d.example") == "[EMAIL] or [PHONE] or [EMAIL]"


def test_masked_changes_question_and_answer_and_nothing_else():
    one = draft("Who is a@b.example?", "a@b.example")
    two = masked(one)
    assert two.label.question.text == "Who is [EMAIL]?" and two.label.answer == "[EMAIL]"
    assert two.label.spans == one.label.spans and (two.method, two.by) == (one.method, one.by)
    assert masked(draft()) == draft()


def test_the_policies():
    clean, asked, answered, quoted = draft(), draft("a@b.example?"), draft(answer="a@b.example"), draft(span=(0, 40))
    drafts = [clean, asked, answered, quoted]
    by_words = [None, "personal data: email in question", "personal data: email in answer"]
    assert pii("keep")(drafts) == [None] * 4
    assert pii("drop")(drafts) == [*by_words, None]
    assert pii("drop", {"c": TEXT})(drafts) == [*by_words, "personal data: email in quote"]
    assert pii("mask", {"c": TEXT})(drafts) == [*by_words, None]
    assert pii("mask")([masked(one) for one in drafts]) == [None] * 4
    with pytest.raises(ValueError, match="mask, drop, keep"):
        pii("hide")


def test_the_generated_corpus_has_no_personal_data_in_its_labels():
    corpus = write_corpus(house_names(), 13)
    keep = pii("drop", {contract.id: contract.text for contract in corpus.contracts})
    assert set(keep([Draft(label, "human", "gold") for label in corpus.labels])) == {None}
