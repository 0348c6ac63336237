"""Facts of generated contracts, and what follows from them."""

import datetime

import pytest

from corpora.errors import CorpusError
from corpora.synthetic import house_names, values, write_corpus
from corpora.synthetic.facts import NOTICE, before, fact_questions, parse_date, parse_period, read_facts
from corpora.types import Contract, Corpus


@pytest.mark.parametrize("style", ["us_long", "uk_long", "iso", "ordinal", "dotted", "us_slash"])
def test_a_date_of_any_house_reads_back(style):
    for day in (datetime.date(2021, 2, 3), datetime.date(2019, 11, 22), datetime.date(2024, 2, 29)):
        assert parse_date(values.format_date(day, style), style) == day


@pytest.mark.parametrize("style", ["words_digits", "digits", "words", "digits_words"])
def test_a_period_of_any_house_reads_back(style):
    for n in values.DAYS:
        assert parse_period(f"no fewer than {values.format_number(n, style)} days", style) == (n, "days")
    for n in values.MONTHS:
        assert parse_period(f"{values.format_number(n, style)} months or more", style) == (n, "months")


def test_what_is_no_date_or_period_is_refused():
    with pytest.raises(CorpusError, match="is no date in the style 'iso'"):
        parse_date("3 March 2021", "iso")
    with pytest.raises(CorpusError, match="names no number"):
        parse_period("reasonable notice", "digits")
    with pytest.raises(CorpusError, match="no contract of a drafting house"):
        read_facts(Corpus("other", (Contract("acme", "text"),), ()))


def test_months_back_end_on_a_day_that_there_is():
    assert before(datetime.date(2021, 3, 31), 1, "months") == datetime.date(2021, 2, 28)
    assert before(datetime.date(2021, 1, 15), 14, "months") == datetime.date(2019, 11, 15)
    assert before(datetime.date(2021, 3, 1), 1, "days") == datetime.date(2021, 2, 28)


def test_facts_of_every_house_are_those_of_its_labels():
    for house in house_names():
        corpus = write_corpus([house], 6, seed=5)
        gold = {label.question.id: label for label in corpus.labels}
        for one in read_facts(corpus):
            said = gold[f"{one.contract_id}__Expiration Date"].answer
            assert (one.expiry is None) == (said is None)
            assert one.expiry is None or values.format_date(one.expiry, one.dates) == said
            assert one.law == gold[f"{one.contract_id}__Governing Law"].answer
            assert len(one.parties) == 2 and all(party in one.name for party in one.parties)


def test_answers_follow_from_the_facts_they_name():
    corpus = write_corpus(["juniper", "ashgrove"], 40, seed=2)
    facts = {one.contract_id: one for one in read_facts(corpus)}
    gold = {label.question.id: label for label in corpus.labels if label.spans}
    asked = fact_questions(corpus)
    assert len({question.id for question in asked}) == len(asked)
    for question in asked:
        of = [facts[contract_id] for contract_id in question.contract_ids]
        assert set(question.sources) <= set(gold) and all(one.name in question.text for one in of)
        if question.kind == "direct":
            assert " ".join(gold[question.sources[0]].answer.split()) == question.answer
        if question.about == "which ends first":
            assert question.answer == min(of, key=lambda one: one.expiry).name
        if question.about == "still running":
            day = question.text.rpartition(" on ")[2].rstrip("?")
            assert question.answer == ("yes" if parse_date(day, of[0].dates) <= of[0].expiry else "no")
        if question.about == "last day of notice":
            n, unit = of[0].notice
            assert unit != "days" or (of[0].expiry - parse_date(question.answer, of[0].dates)).days == n
        if question.about == "same law":
            assert question.answer == ("yes" if of[0].law == of[1].law else "no")
    assert {question.about for question in asked} >= {NOTICE, "notice in time", "same law", "which ends first"}


def test_yes_and_no_are_about_even_and_the_same_arguments_ask_the_same():
    corpus = write_corpus(["juniper"], 120, seed=3)
    asked = fact_questions(corpus, seed=1)
    assert asked == fact_questions(corpus, seed=1) != fact_questions(corpus, seed=2)
    runs = [question.answer for question in asked if question.about == "still running"]
    assert 0.35 < runs.count("yes") / len(runs) < 0.65
