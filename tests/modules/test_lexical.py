from concurrent.futures import ThreadPoolExecutor

import pytest

from corpora.types import Contract
from modules.lexical import search_words
from modules.retriever import StoreError

FILL = "The parties have settled this between them, once and for all, in good faith and with due care and regard. "
TEXT = "\n\n".join(
    f"{n}. {title}. {sentence} {FILL * 2}"
    for n, (title, sentence) in enumerate(
        [("Audits", "Records are kept."), ("Fees", "The Buyer is auditing accounts."), ("Law", "Ohio courts decide.")],
        1,
    )
)


def test_words_count_by_their_stems_and_with_their_headings(make_index):
    index = make_index(a=TEXT, b=TEXT.replace("Ohio", "Utah"))
    hits = search_words(index, "audited", 5, "a")
    assert [hit.passage.heading for hit in hits] == ["1. Audits", "2. Fees"] or {
        hit.passage.heading for hit in hits
    } == {"1. Audits", "2. Fees"}
    assert hits[0].score >= hits[1].score > 0
    (only,) = search_words(index, "Utah", 5)
    assert only.passage.contract_id == "b" and "Utah" in only.passage.text
    assert {hit.passage.contract_id for hit in search_words(index, "Law", 5)} == {"a", "b"}
    assert len(search_words(index, "audit law fees", 1, "a")) == 1


def test_without_a_shared_word_there_is_no_hit(make_index):
    index = make_index(a=TEXT, b="§§ 12")
    for query in ("zebra", "the of", "?"):
        assert search_words(index, query) == () == search_words(index, query, 3, "a")
    assert search_words(index, "law", 3, "b") == ()
    with pytest.raises(StoreError, match="'c' is not in the index"):
        search_words(index, "law", 3, "c")


def test_what_is_added_and_replaced_is_found_at_once(make_index):
    index = make_index(a=TEXT)
    assert search_words(index, "zebra") == () and search_words(index, "Ohio", 3, "a")
    index.add(
        [Contract("b", "1. Zebras. A zebra is striped."), Contract("a", "1. Law. Maine decides.")], progress=False
    )
    assert [hit.passage.contract_id for hit in search_words(index, "zebra")] == ["b"]
    assert search_words(index, "Ohio") == () == search_words(index, "Ohio", 3, "a")
    assert search_words(index, "Maine", 3, "a")


def test_threads_get_what_one_alone_gets(make_index):
    index = make_index(a=TEXT, b=TEXT)
    asked = [(query, name) for query in ("audits", "law of Ohio", "fees") for name in ("a", "b", None)] * 8
    alone = [search_words(index, query, 3, name) for query, name in asked]
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda one: search_words(index, one[0], 3, one[1]), asked)) == alone
