import pytest

from corpora.types import Passage, Quote
from modules.embedder import load_embedder
from modules.embedding import folded
from modules.grounding import locate, stretches
from modules.spans import ScoredSpan, SpanFinder, confidences, fit_span_model

TEXT = "1. Law. Ohio law governs. Courts of Ohio decide. 2. Fees. The Buyer pays fees. Fees are due at once."


def cut(*places):
    return [Passage(f"c:{a}-{b}", "c", a, b, TEXT[a:b]) for a, b in places]


def test_the_nearest_sentences_come_first_with_their_places_and_do_not_overlap(word_embedder):
    found = SpanFinder(word_embedder).find("the buyer pays fees", cut((0, len(TEXT))))
    assert found[0].quote.text == "The Buyer pays fees." and found[0].score == pytest.approx(1.0)
    assert all(TEXT[span.quote.start : span.quote.end] == span.quote.text for span in found)
    places = sorted((span.quote.start, span.quote.end) for span in found)
    assert all(before[1] <= after[0] for before, after in zip(places, places[1:], strict=False))
    scores = [span.score for span in found]
    assert scores == sorted(scores, reverse=True)
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


def span(score, length=50):
    return ScoredSpan(Quote("x" * length, "c", 0, length), score)


def test_confidence_is_fitted_to_how_often_a_score_is_right():
    questions = [("q", [span(0.1)], 0.5, [i == 0]) for i in range(10)]
    questions += [("q", [span(0.9)], 0.5, [i < 8]) for i in range(10)]
    model = fit_span_model(questions, strength=1e3)
    (low,), (high,) = (confidences(model, "q", [span(score)], 0.5) for score in (0.1, 0.9))
    assert low == pytest.approx(0.1, abs=0.02) and high == pytest.approx(0.8, abs=0.02)
    assert confidences(model, "q", [], 0.5) == [] and confidences(model, "q", [span(0.9)], 0.0)[0] >= 0
    with pytest.raises(ValueError, match="of 2 spans 2 are right"):
        fit_span_model([("q", [span(0.1), span(0.2)], 0.5, [True, True])])


def test_confidence_follows_whether_the_question_is_answered_and_what_the_best_span_is():
    questions = []
    for i in range(40):
        answered = i % 2 == 0
        likely = 0.9 if answered else 0.1
        questions.append(("q", [span(0.8), span(0.5)], likely, [answered and i % 20 != 0, answered and i % 10 == 0]))
    model = fit_span_model(questions)
    there, not_there = (
        confidences(model, "q", spans, likely) for spans, likely in (([span(0.8), span(0.5)], 0.9), ([span(0.8)], 0.1))
    )
    assert there[0] > 0.7 > there[1] and not_there[0] < 0.2


def test_a_question_that_sentences_never_answer_has_lower_confidences():
    questions = [(q, [span(0.8)], 0.5, [q == "law" and i % 4 != 0]) for i in range(20) for q in ("law", "date")]
    model = fit_span_model(questions)
    law, date, other = (confidences(model, q, [span(0.8)], 0.5)[0] for q in ("law", "date", "something else"))
    assert law > 0.6 > other > 0.2 > date


def test_what_overlaps_is_read_once():
    assert stretches(cut((0, 30), (20, 49), (22, 40))) == [("c", 0, TEXT[:49])]
    assert locate("Courts of Ohio decide.", cut((0, 35), (30, 60))).start == TEXT.index("Courts")


def test_sentences_are_read_in_their_passage_and_stand_where_they_are_quoted():
    embedder = load_embedder()
    passages = cut((0, 49), (49, len(TEXT)))
    alone, inside = (SpanFinder(embedder, text) for text in (None, lambda passage: folded(passage.text)))
    for query in ("Which law governs?", "Who pays?"):
        found = {finder: finder.find(query, passages) for finder in (alone, inside)}
        assert found[alone][0].quote.start == found[inside][0].quote.start
        assert found[alone][0].score != pytest.approx(found[inside][0].score, abs=1e-3)
        assert all(TEXT[s.quote.start : s.quote.end] == s.quote.text for s in found[inside])
    places = [(s.quote.start, s.quote.end) for s in inside.find("Ohio", cut((0, 49), (20, 80)))]
    assert len(places) == len(set(places)) and not any(a < d and c < b for a, b in places for c, d in places if a < c)


def test_a_sentence_behind_what_the_embedder_reads_is_not_found():
    text = "word " * 300 + "goes on. The Buyer pays fees."
    finder = SpanFinder(load_embedder(), lambda passage: folded(passage.text))
    found = finder.find("the buyer pays fees", [Passage("c:0", "c", 0, len(text), text)])
    assert found and all("Buyer" not in span.quote.text for span in found)


def test_phrases_are_found_where_a_question_wants_less_than_a_sentence(word_embedder):
    text = "This Agreement, made on March 3, 2019 (the Effective Date), binds the parties."
    passage = Passage("c:0", "c", 0, len(text), text)
    finder = SpanFinder(word_embedder)
    (whole,) = finder.find("made on march 3 2019", [passage])
    (first, *others) = finder.find("made on march 3 2019", [passage], in_phrases=True)
    assert whole.quote.text == text and first.quote.text == "made on March 3, 2019"
    assert first.score > whole.score and others
    assert all(text[s.quote.start : s.quote.end] == s.quote.text for s in (first, *others))
    inside = SpanFinder(load_embedder(), lambda one: folded(one.text))
    for query, in_phrases in (("date", True), ("date", False), ("date", True)):  # each cut keeps its own vectors
        found = inside.find(query, [passage], in_phrases=in_phrases)
        assert (found[0].quote.text == text) != in_phrases
