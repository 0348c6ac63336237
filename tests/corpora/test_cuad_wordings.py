from benchmarks.wordings import WORDINGS
from corpora.cuad import CATEGORIES
from corpora.cuad_wordings import PARAPHRASES


def test_every_category_has_wordings_of_its_own():
    assert list(PARAPHRASES) == [category.name for category in CATEGORIES]
    said = [wording for wordings in PARAPHRASES.values() for wording in wordings]
    assert len({" ".join(wording.casefold().split()) for wording in said}) == len(said)


def test_what_is_trained_on_is_not_what_is_measured_on():
    trained = {" ".join(wording.casefold().split()) for wordings in PARAPHRASES.values() for wording in wordings}
    assert not trained & {" ".join(wording.casefold().split()) for wording in WORDINGS.values()}
