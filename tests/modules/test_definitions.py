from corpora.types import Passage
from modules.definitions import defining_passages, find_definitions

PARTS = [
    'Contract of Acme Corp. (the "Seller") and Beta LLC (with its heirs, "Buyer"). This "Agreement" binds.\n\n',
    '1.1 "Net Sales" shall mean the gross amount. “Royalty Term” has the meaning set forth in 9.\n\n',
    "2.1 The Buyer pays 5% of Net Sales to the Seller.\n\n",
    "2.2 The Seller ships to the Buyer. The Seller pays the Buyer nothing.\n\n",
]
TEXT = "".join(PARTS)


def passages():
    starts = [sum(map(len, PARTS[:i])) for i in range(len(PARTS))]
    return [
        Passage(f"c:{i}", "c", a, a + len(part), part) for i, (a, part) in enumerate(zip(starts, PARTS, strict=True))
    ]


def test_terms_are_found_where_they_are_defined():
    found = find_definitions(TEXT)
    assert set(found) == {"Seller", "Buyer", "Net Sales", "Royalty Term"}
    assert TEXT[found["Net Sales"] :].startswith('"Net Sales" shall mean')
    assert TEXT[found["Seller"] :].startswith('(the "Seller")')


def test_a_meaning_comes_before_a_name():
    text = 'Acme (the "Company") signs. "Company" means Acme and its heirs.'
    assert find_definitions(text) == {"Company": text.index('"Company" means')}


def test_the_rarest_terms_of_what_is_chosen_bring_their_passages():
    own = passages()
    assert defining_passages(TEXT, own, [own[2]], 2) == (own[1], own[0])
    assert defining_passages(TEXT, own, [own[2]], 1) == (own[1],)
    assert defining_passages(TEXT, own, [own[2], own[1]], 5) == (own[0],)
    assert defining_passages(TEXT, own, [own[2]], 0) == () == defining_passages("No terms.", own, [own[2]], 3)
