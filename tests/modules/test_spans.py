import pytest

from corpora.types import Passage
from modules.grounding import locate, stretches
from modules.spans import SpanFinder, confidence, fit_confidence

TEXT = "1. Law. Ohio law governs. Courts of Ohio decide. 2. Fees. The Buyer pays fees. Fees are due at once."


def cut(*places):
    return [Passage(f"c:{a}-{b}", "c", a, b, TEXT[a:b]) for a, b in places]


def test_the_nearest_sentences_come_first_with_their_places_and_do_not_overlap(word_embedder):
    found = SpanFinder(word_embedder, slope=2.0, offset=-1.0).find("the buyer pays fees", cut((0, len(TEXT))))
    assert found[0].quote.text == "The Buyer pays fees." and found[0].score == pytest.approx(1.0)
    assert all(TEXT[span.quote.start : span.quote.end] == span.quote.text for span in found)
    places = sorted((span.quote.start, span.quote.end) for span in found)
    assert all(before[1] <= after[0] for before, after in zip(places, places[1:], strict=False))
    scores = [span.score for span in found]
    assert scores == sorted(scores, reverse=True)
    assert [span.confidence for span in found] == pytest.approx([confidence(score, 2.0, -1.0) for score in scores])
    assert len(SpanFinder(word_embedder).find("fees", cut((0, len(TEXT))), n_best=2)) == 2


def test_a_run_of_sentences_is_one_span_where_it_is_nearer_than_each(word_embedder):
    (first, *_) = SpanFinder(word_embedder).find("Ohio law governs courts of Ohio decide", cut((0, 49)))
    assert first.quote.text == "Ohio law governs. Courts of Ohio decide."


def test_sentences_run_over_the_cuts_between_passages(word_embedder):
    whole = SpanFinder(word_embedder).find("courts of ohio decide", cut((0, 35), (35, 60)))
    assert whole[0].quote.text == "Courts of Ohio decide."
    apart = SpanFinder(word_embedder).find("courts of ohio decide", cut((0, 35), (40, 60)))
    assert "Courts of Ohio decide." not in [span.quote.text for span in apart]
    assert SpanFinder(word_embedder).find("ohio", []) == ()


def test_no_sentence_is_embedded_twice(word_embedder):
    seen = []
    encode = word_embedder.encode
    word_embedder.encode = lambda texts, **options: seen.extend(texts) or encode(texts, **options)
    finder = SpanFinder(word_embedder)
    for query in ("ohio", "fees", "ohio"):
        finder.find(query, cut((0, len(TEXT))))
    assert len(seen) == len(set(seen)) and {"ohio", "fees"} < set(seen)


def test_confidence_is_fitted_to_how_often_a_score_is_right():
    scores = [0.1] * 10 + [0.9] * 10
    right = [True] + [False] * 9 + [True] * 8 + [False] * 2
    slope, offset = fit_confidence(scores, right)
    assert confidence(0.1, slope, offset) == pytest.approx(0.1, abs=0.01)
    assert confidence(0.9, slope, offset) == pytest.approx(0.8, abs=0.01)
    assert confidence(0.5, 1e6, -1e9) < 1e-300 and confidence(1.0, 1e6, 1e6) == 1.0
    with pytest.raises(ValueError, match="of 2 spans 2 are right"):
        fit_confidence([0.1, 0.2], [True, True])


def test_what_overlaps_is_read_once():
    assert stretches(cut((0, 30), (20, 49), (22, 40))) == [("c", 0, TEXT[:49])]
    assert locate("Courts of Ohio decide.", cut((0, 35), (30, 60))).start == TEXT.index("Courts")
