import pytest

from corpora.types import Passage, Quote
from modules.grounding import locate

TEXT = "1. Law.  The laws of\nOhio govern. 2. Fees. Pay $1.50 (one). 3. Law. The laws of\nOhio govern."


def cut(*places, contract_id="c", text=TEXT):
    """The passages of `text` between neighbouring `places`."""
    return [
        Passage(f"{contract_id}:{start}", contract_id, start, end, text[start:end])
        for start, end in zip(places, places[1:], strict=False)
    ]


def test_verbatim_but_white_space_with_offsets_in_the_contract():
    found = locate(" The laws  of Ohio\ngovern ", cut(4, 33))
    assert found == Quote("The laws of\nOhio govern", "c", 9, 32)
    assert TEXT[found.start : found.end] == found.text


@pytest.mark.parametrize(
    "made_up",
    ["the laws of Ohio govern", "The laws of Ohio, govern", "The laws of Texas govern", "Pay $1050", "", " \n"],
)
def test_what_does_not_stand_there_is_no_quote(made_up):
    assert locate(made_up, cut(0, len(TEXT))) is None


def test_signs_of_a_pattern_are_plain_characters():
    assert locate("Pay $1.50 (one).", cut(0, len(TEXT))).text == "Pay $1.50 (one)."


def test_a_quote_may_run_over_a_cut_whatever_the_order():
    passages = cut(4, 16, 22, 40)
    assert locate("The laws of Ohio govern.", passages) == locate("The laws of Ohio govern.", passages[::-1])
    assert locate("The laws of Ohio govern.", passages).start == 9


def test_a_quote_never_runs_over_a_gap_or_between_contracts():
    first, middle, last = cut(4, 16, 22, 40)
    assert TEXT[9:16] + TEXT[22:27] == "The lawhio g"
    assert locate("The lawhio g", [first, last]) is None
    assert locate("The laws of Ohio govern.", [first, last]) is None
    (other,) = cut(16, 40, contract_id="d")
    assert locate("The laws of Ohio govern.", [first, other]) is None
    assert locate("The laws of Ohio govern.", [first, middle, last]) is not None


def test_of_several_places_the_first():
    assert locate("The laws of Ohio", cut(0, len(TEXT))).start == 9
    assert locate("The laws of Ohio", cut(40, len(TEXT))).start == TEXT.rindex("The laws")
