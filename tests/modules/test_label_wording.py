import pytest

from corpora.labels.types import Draft
from corpora.synthetic.house import house_names
from corpora.synthetic.writer import write_corpus
from corpora.types import Label, Question, Span
from modules.label_wording import plausible
from modules.signatures import NOT_FOUND

LAW = "Which law governs this Agreement?"


@pytest.fixture(scope="module")
def keep():
    return plausible()


def draft(question=LAW, answer="the State of Ohio", span=(0, 60)):
    return Draft(Label(Question("q", "c", "any", question), (Span(*span),) if span else (), answer), "write", "a model")


def kind(keep, one):
    (why,) = keep([one])
    return why and why.split(":")[0]


@pytest.mark.parametrize(
    "good",
    [
        draft(),
        draft(answer=None),
        draft(answer=NOT_FOUND, span=None),
        draft(answer="5%"),
        draft("Who are the parties?", "Müller & Söhne GmbH"),
        draft("Is the Licensee unable to assign?", "unable to pay its debts"),
        draft("May the data train a large language model?", "a large language model"),
        draft("Welches Recht gilt in Ohio according to this Agreement and the law of the State?"),
    ],
)
def test_what_can_be_meant_stays(keep, good):
    assert kind(keep, good) is None


@pytest.mark.parametrize(
    "bad, why",
    [
        (draft(""), "question without words"),
        (draft(":"), "question without words"),
        (draft("1. 2. 3."), "question without words"),
        (draft("Which law?"), "question length"),
        (draft("Which law " * 60), "question length"),
        (draft("I cannot write a question about this passage."), "question refuses"),
        (draft("I'm sorry, but there is no passage."), "question refuses"),
        (draft("As an AI language model, I have no question."), "question refuses"),
        (draft("[[ ## question ## ]] Which law governs?"), "question has format residue"),
        (draft("Which law governs this Agreement? [[ ## completed ## ]]"), "question has format residue"),
        (draft("Thought process: the passage names a law"), "question has format residue"),
        (draft("Question: Which law governs?"), "question has format residue"),
        (draft("Which law governs?<|im_end|>"), "question has format residue"),
        (draft("{question}"), "question has format residue"),
        (draft("What a reviewer would ask."), "question has format residue"),
        (draft("Какое право применяется к договору?"), "question not in Latin letters"),
        (draft("Welches Recht gilt für diesen Vertrag?"), "question in another language"),
        (draft("Quelle est la loi applicable au contrat ?"), "question in another language"),
        (draft(span=(0, 1)), "quote length"),
        (draft(span=(0, 4001)), "quote length"),
        (draft(answer=LAW.lower().rstrip("?")), "answer is the question"),
        (draft(answer=""), "answer without words"),
        (draft(answer=":"), "answer without words"),
        (draft(answer="word " * 61), "answer length"),
        (draft(answer="I cannot tell from the passage"), "answer refuses"),
        (draft(answer="the short answer"), "answer has format residue"),
        (draft(answer="{answer}"), "answer has format residue"),
        (draft(answer="Answer: Ohio"), "answer has format residue"),
    ],
)
def test_what_cannot_be_meant_goes(keep, bad, why):
    assert kind(keep, bad) == why


def test_the_bounds_and_the_language_are_the_callers():
    assert kind(plausible(question_words=(1, 2)), draft("Which law?")) is None
    assert kind(plausible(answer_words=(1, 2)), draft()) == "answer length"
    assert kind(plausible(languages=("de",)), draft("Welches Recht gilt für diesen Vertrag?")) is None
    assert kind(plausible(languages=("de",)), draft()) == "question in another language"
    assert kind(plausible(languages=None, latin_share=0), draft("Какое право применяется?")) is None
    assert kind(plausible(languages=("ru",), latin_share=0), draft("Какое право применяется?")) is None


def test_a_language_that_cannot_be_told_is_refused():
    with pytest.raises(ValueError, match="py3langid knows"):
        plausible(languages=("klingon",))


def test_every_gold_label_of_the_generated_corpus_is_plausible(keep):
    labels = write_corpus(house_names(), 13).labels
    assert set(keep([Draft(label, "human", "gold") for label in labels])) == {None}
