import pytest

from corpora.synthetic import write_corpus
from corpora.types import Contract, Label, Question, Span
from modules.projection import pattern_of, project

LAW = "We look to the laws of the State of Nevada for the answer to any question."
DATED = "This Agreement ends on June 28, 2016 unless Acme Foods Inc. pays $1,000.00 before."


def labelled(text, *quotes, answer=None, category="Law"):
    """A label of a contract that says `text`, and the contract."""
    spans = tuple(Span(text.index(quote), text.index(quote) + len(quote)) for quote in quotes)
    return Label(Question(f"a__{category}", "a", category, f"{category}?"), spans, answer), Contract("a", text)


def pattern(text, *quotes, answer=None, category="Law"):
    return pattern_of(*labelled(text, *quotes, answer=answer, category=category), parent=f"id of {category}")


def marks(patterns, text, **options):
    """By category, what is marked in a contract that says `text`: its quotes and the answer."""
    patterns = patterns if isinstance(patterns, list) else [patterns]
    found = project(patterns, Contract("b", text), **options)
    return {p.pattern.category: ([text[s.start : s.end] for s in p.spans], p.answer) for p in found}


@pytest.mark.parametrize(
    "quote, other, theirs",
    [
        ("June 28, 2016", DATED.replace("June 28, 2016", "December 1, 2024"), "December 1, 2024"),
        ("Acme Foods Inc.", DATED.replace("Acme Foods", "Birch & Sons"), "Birch & Sons Inc."),
        ("$1,000.00", DATED.replace("$1,000.00", "$12,500,000"), "$12,500,000"),
        (DATED, DATED.replace("June 28, 2016", "May 4, 1999"), DATED.replace("June 28, 2016", "May 4, 1999")),
    ],
)
def test_dates_names_and_amounts_are_those_of_the_other_contract(quote, other, theirs):
    assert marks(pattern(DATED, quote), f"Something else.\n\n{other}\n\nThe end.") == {"Law": ([theirs], None)}


def test_the_answer_is_mapped_inside_its_quote():
    one = pattern(LAW, LAW, answer="the State of Nevada")
    other = LAW.replace("Nevada", "North Dakota")
    assert marks(one, f"An opening. {other}") == {"Law": ([other], "the State of North Dakota")}
    (found,) = project([one], Contract("b", LAW))
    assert found.similarity == 1.0 and found.pattern.parent == "id of Law"


def test_hyphenated_words_and_numbers_with_points_are_whole_words():
    days = "Either of us may end this Deal on {} days of written notice to the other."
    one = pattern(days.format("five"), "five days")
    assert marks(one, days.format("twenty-five")) == {"Law": (["twenty-five days"], None)}
    price = "The yearly price of all services under this Deal is ${} and no more."
    one = pattern(price.format("1,000"), "$1,000")
    assert marks(one, price.format("1,000,000.50")) == {"Law": (["$1,000,000.50"], None)}


@pytest.mark.parametrize(
    "quote, other",
    [
        ("June 28, 2016", DATED.replace("June 28, 2016", "or about June 28, 2016")),  # put in at its start
        ("June 28, 2016", DATED.replace("June 28, 2016", "June 28, 2016 at noon")),  # and at its end
        ("June 28, 2016", DATED.replace("June 28, ", "")),  # left out at its start
        ("June 28, 2016", DATED.replace(", 2016", "")),
        ("before.", DATED.replace("pays $1,000.00 before", "pays $1,000.00")),
    ],
)
def test_words_put_in_or_left_out_at_an_edge_of_a_span_refuse_it(quote, other):
    assert marks(pattern(DATED, quote), other) == {}
    # Elsewhere in the sentence they do not matter.
    assert marks(pattern(DATED, "Acme Foods Inc."), other) == {"Law": (["Acme Foods Inc."], None)}


def test_an_answer_whose_edge_is_not_sure_refuses_the_whole_label():
    one = pattern(LAW, LAW, answer="the State of Nevada")
    assert marks(one, LAW.replace("the State", "what is the State")) == {}


def test_a_span_that_ends_within_a_word_is_refused():
    text = "The goods are Acme Foods's until all of the price has been paid to it in full."
    assert marks(pattern(text, "are Acme Foods"), text) == {}
    assert marks(pattern(text, "oods's until"), text) == {}
    assert marks(pattern(text, " Acme Foods's "), text) == {"Law": (["Acme Foods's"], None)}  # white space is no word


def test_two_questions_on_one_sentence_are_both_answered():
    both = [pattern(DATED, "June 28, 2016", category="End"), pattern(DATED, "Acme Foods Inc.", category="Payer")]
    other = DATED.replace("June 28, 2016", "May 4, 1999").replace("Acme", "Birch")
    assert marks(both, other) == {"End": (["May 4, 1999"], None), "Payer": (["Birch Foods Inc."], None)}


def test_a_sentence_more_like_another_questions_pattern_is_left_to_that():
    sold = "The Seller may end this Agreement on 30 days of notice to the Buyer."
    bought = "The Buyer may end this Agreement on 60 days of notice to the Seller."
    other = bought.replace("60", "90")
    assert marks(pattern(sold, "30 days", category="Seller's"), other) == {"Seller's": (["90 days"], None)}
    both = [pattern(sold, "30 days", category="Seller's"), pattern(bought, "60 days", category="Buyer's")]
    assert marks(both, other) == {"Buyer's": (["90 days"], None)}


def test_of_the_same_question_the_most_alike_sentence_and_pattern_are_taken():
    near, far = LAW.replace("Nevada", "Ohio"), "We look to laws of the State of Iowa for that answer to a question."
    assert marks(pattern(LAW, "State of Nevada"), f"{far} {near}") == {"Law": (["State of Ohio"], None)}
    two = [pattern(far, "Iowa"), pattern(LAW, "State of Nevada")]
    assert marks(two, near) == {"Law": (["State of Ohio"], None)}
    # Each pattern has a sentence of its own, and the one that is less alike stands first.
    further = far.replace("Iowa", "Utah").replace("that answer", "any one answer")
    assert marks(two, f"{further} {near}") == {"Law": (["State of Ohio"], None)}


def test_a_likeness_that_is_in_the_value_alone_is_none():
    """Two dates are alike, whatever they are the dates of."""
    one = pattern("Dated June 28, 2016", "June 28, 2016")
    assert marks(one, "It ends June 28, 2016") == {} == marks(one, "June 28, 2016")
    clause = pattern(LAW, LAW)
    assert marks(clause, LAW) == {"Law": ([LAW], None)}  # of a clause, its own words tell


def test_labels_of_several_spans_and_sentences():
    text = "Here are Acme Inc. (the Seller) and Birch Ltd. (the Buyer), who agree. Both of them sign below today."
    names = pattern(text, "Acme Inc.", "Birch Ltd.", category="Parties")
    other = text.replace("Acme", "Cedar Grove").replace("Birch", "Dogwood")
    assert marks(names, other) == {"Parties": (["Cedar Grove Inc.", "Dogwood Ltd."], None)}
    whole = pattern(text, text, answer="Birch Ltd.", category="Both")
    assert whole.n_sentences == 2
    assert marks(whole, f"Before. {other} After.") == {"Both": ([other], "Dogwood Ltd.")}
    assert marks(whole, other.partition(" Both")[0]) == {}  # fewer sentences than the pattern's
    # One span of two that cannot be mapped, and there is no label.
    assert marks(names, other.replace("Dogwood Ltd.", "the Birch Ltd.")) == {}


def test_what_is_less_alike_than_asked_is_no_projection():
    other = "We look to the laws of the State of Ohio, come what may, for anything at all that is asked."
    (found,) = project([pattern(LAW, "Nevada")], Contract("b", other), min_similarity=0.3)
    assert 0.3 < found.similarity < 0.9
    assert project([pattern(LAW, "Nevada")], Contract("b", other), min_similarity=found.similarity)
    assert not project([pattern(LAW, "Nevada")], Contract("b", other), min_similarity=found.similarity + 0.01)
    assert not project([pattern(LAW, "Nevada")], Contract("b", "Nothing of that kind."))


def test_nothing_to_project_from_or_onto():
    assert project([], Contract("b", LAW)) == [] and project([pattern(LAW, "Nevada")], Contract("b", " \n\n ")) == []


def test_labels_that_make_no_pattern():
    assert pattern(LAW) is None  # "not in this contract"
    text = f"{LAW} " + "Another sentence stands here. " * 4 + DATED
    assert pattern(text, "Nevada", "June 28, 2016") is None
    assert pattern(LAW, LAW, answer="the law of Nevada") is None
    assert pattern(LAW, "Nevada", answer="Nevada").answer is None  # the spans themselves are the answer


def _answer(label, text):
    return label.answer or ", ".join(text[span.start : span.end] for span in label.spans)


def test_what_is_carried_over_between_generated_contracts_is_what_their_gold_says():
    corpus = write_corpus(["juniper"], 16, seed=5)
    texts = {contract.id: contract for contract in corpus.contracts}
    gold = {(label.question.contract_id, label.question.text): label for label in corpus.labels}
    known = {contract.id for contract in corpus.contracts[:8]}
    patterns = [
        pattern_of(label, texts[label.question.contract_id], label.question.id)
        for label in corpus.labels
        if label.question.contract_id in known
    ]
    right = []
    for contract in corpus.contracts[8:]:
        for one in project([p for p in patterns if p], contract, min_similarity=0.6):
            label = gold[contract.id, one.pattern.question]
            quotes = ", ".join(contract.text[span.start : span.end] for span in one.spans)
            right.append(label.spans == one.spans and _answer(label, contract.text) == (one.answer or quotes))
    assert len(right) >= 40 and sum(right) >= 0.95 * len(right)
