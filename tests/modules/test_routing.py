import pytest

from corpora.cuad import CATEGORIES, bare_question
from corpora.types import Contract
from modules.routing import make_router, route

LAW = "\n\n1. Law. This Agreement is governed by the laws of Ohio. In the event of default the code is released."
CONTRACTS = {
    "ENERGOUSCORP_2017-EX-10-STRATEGIC ALLIANCE AGREEMENT": "STRATEGIC ALLIANCE AGREEMENT between Energous Corporation"
    ', a Delaware corporation ("Energous"), and Dialog Semiconductor (UK) Ltd. ("Dialog").',
    "ACMEINC_2019-EX-10-SUPPLY AGREEMENT": "SUPPLY AGREEMENT BETWEEN ACME TOOLS INC. AND BETA SOURCE LLC of Ohio",
    "ACMEINC_2020-EX-10-LEASE AGREEMENT": 'LEASE AGREEMENT between Acme Tools Inc. ("Tenant") and Gamma Homes Ltd. '
    "The indemnification is in 9.",
    "OTHER-LICENSE AGREEMENT": "LICENSE AGREEMENT by and between the persons listed in Schedule A",
}
TEXTS = {key: text + LAW for key, text in CONTRACTS.items()}
TEXTS["OTHER-LICENSE AGREEMENT"] += " filler" * 1000 + " Schedule A: Zyxel Partners" + " filler" * 1000
ENERGOUS, SUPPLY, LEASE, OTHER = TEXTS


@pytest.fixture(scope="module")
def router():
    return make_router({key: Contract(key, text) for key, text in TEXTS.items()})


@pytest.mark.parametrize(
    ("query", "contracts", "question"),
    [
        ("Consider the Energous strategic alliance agreement; which law governs?", (ENERGOUS,), "which law governs?"),
        ("Consider the agreement between Energous and Dialog Semiconductor; Who?", (ENERGOUS,), "Who?"),
        ("Under the supply agreement with Acme Tools, what is the term?", (SUPPLY,), "what is the term?"),
        ("Consider the Zyxel contract; is there a cap?", (OTHER,), "is there a cap?"),
        ("consider the dialog semiconductor contract: is there a cap?", (ENERGOUS,), "is there a cap?"),
        ("Consider the contract with Acme Tools Inc.; is there a cap?", (SUPPLY, LEASE), "is there a cap?"),
    ],
)
def test_a_name_in_front_leads_to_its_contract_and_is_taken_off(router, query, contracts, question):
    found = route(router, query)
    assert set(found.contract_ids) == set(contracts) and found.question == question


def test_a_company_named_elsewhere_leads_to_its_contracts(router):
    for query in ("What does Gamma Homes pay?", "What does gamma homes pay?", "Which law governs the Gamma contract?"):
        assert route(router, query).contract_ids == (LEASE,) and route(router, query).question == query


@pytest.mark.parametrize(
    "query",
    [
        "In the event of default, who gets the source code?",
        "Consider the indemnification; is there a cap?",
        "Consider the agreement; which law governs?",
        "Is Microsoft a party?",
        "Consider the Microsoft agreement; which law governs?",
        "",
        *(bare_question(category.question) for category in CATEGORIES),
        *(category.question for category in CATEGORIES),
    ],
)
def test_a_question_that_names_no_contract_is_not_routed(router, query):
    assert route(router, query).contract_ids == ()


def test_too_many_that_match_alike_are_none(router):
    query = "Consider the contract with Acme Tools Inc.; is there a cap?"
    assert route(router, query, max_contracts=1).contract_ids == ()


def test_an_empty_library_routes_nowhere():
    assert route(make_router({}), "Consider the Acme contract; which law governs?").contract_ids == ()
