import numpy as np
import pytest

from corpora.sentences import phrases, sentences, token_places


def texts(text, *where):
    spans = sentences(text, *where)
    assert all(before.end <= after.start for before, after in zip(spans, spans[1:], strict=False))
    return [text[span.start : span.end] for span in spans]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("It ends. It begins again.", ["It ends.", "It begins again."]),
        (
            "Acme Inc. and Beta Corp. of the U.S. agree. They do.",
            ["Acme Inc. and Beta Corp. of the U.S. agree.", "They do."],
        ),
        ("5.2 Renewal. This renews.", ["5.2 Renewal.", "This renews."]),
        ("12. Notices go to Mr. James M. Smith.", ["12. Notices go to Mr. James M. Smith."]),
        ('He said "no." Then: (a) one; (b) two.', ['He said "no."', "Then:", "(a) one;", "(b) two."]),
        ("a fee of $1.50 a day. then on", ["a fee of $1.50 a day. then on"]),
        ("A title\n\nA text\nof two lines.", ["A title", "A text\nof two lines."]),
        ("  \n\n ", []),
        ("", []),
    ],
)
def test_sentences(text, expected):
    assert texts(text) == expected


def test_all_but_white_space_is_in_one_sentence_of_the_stretch():
    text = "One. Two (2).\n\nThree; Four? \fFive"
    assert "".join("".join(texts(text)).split()) == "".join(text.split())
    assert texts(text, 5, 12) == ["Two (2)"]


@pytest.mark.parametrize("unit", [" ", "\n", "a", ". ", "1. ", "A. ", ";", "\n \n", '."'])
def test_time_is_linear_in_the_text(unit, seconds):
    small, large = (unit * (n_chars // len(unit)) for n_chars in (20_000, 160_000))
    # Eight times the text takes eight times as long, or 64 times if it is quadratic; the constant is for the clock.
    assert seconds(sentences, large) < 32 * seconds(sentences, small) + 0.2


def test_tokens_of_a_piece_are_those_that_begin_in_it():
    # [CLS] at 0-0, three words, [SEP]; the last piece is behind what was read.
    offsets = np.array([(0, 0), (0, 4), (5, 9), (10, 12), (0, 0)])
    assert token_places(offsets, [(0, 9), (10, 12), (13, 20)]) == [(1, 3), (3, 4), (0, 0)]


def test_phrases_end_at_commas_brackets_and_quotations():
    text = 'This "Supply Agreement" (the "Deal"), made on May 1, 2019, ends; then it renews. No. 5 stays.'
    found = [text[span.start : span.end] for span in phrases(text)]
    assert found == [
        "This", '"Supply Agreement"', "(the", '"Deal"),', "made on May 1,", "2019,", "ends;", "then it renews.",
        "No. 5 stays.",
    ]  # fmt: skip
    assert phrases("") == () and "".join("".join(found).split()) == "".join(text.split())
