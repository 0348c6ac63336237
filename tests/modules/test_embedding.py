import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import AutoTokenizer

from corpora.cuad import read_cuad
from corpora.passages import cut_passages
from corpora.synthetic import write_corpus
from corpora.types import Contract, Passage
from modules.embedder import load_embedder, packaged_folder
from modules.embedding import embed_in_context, embedded_text, folded, pieces_in, token_counter, unit_vectors
from modules.retriever import PassageIndex, StoreError

RULE = "Payments ------------------------ 1,000,000.00 " * 40


@pytest.fixture(scope="module")
def minilm():
    """The packaged embedder's tokenizer and limit, without its weights."""
    return SimpleNamespace(tokenizer=AutoTokenizer.from_pretrained(packaged_folder()), max_seq_length=256)


def test_the_embedded_text_is_led_by_the_headings_once():
    passage = Passage("c:0-9", "c", 0, 9, "The fees\n are due.", "ARTICLE I > 1.1 Fees")
    assert embedded_text(passage) == "ARTICLE I > 1.1 Fees: The fees are due."
    assert embedded_text(Passage("c:0-9", "c", 0, 9, "1.1  Fees. Due.", "1.1 Fees")) == "1.1 Fees. Due."
    assert embedded_text(Passage("c:0-9", "c", 0, 9, " Due. ")) == "Due."


def test_tokens_are_counted_with_the_special_ones_and_beyond_the_limit(minilm):
    count = token_counter(minilm)
    assert count(["", "law", "law law"]) == [2, 3, 4]
    assert count(["law " * 1000]) == [1002]
    assert len(minilm.tokenizer("law " * 1000, truncation=True)["input_ids"]) < 1002
    assert token_counter(object()) is None


def test_an_index_holds_no_passage_that_its_embedder_does_not_read_to_the_end(tmp_path, word_embedder, minilm):
    word_embedder.tokenizer, word_embedder.max_seq_length = minilm.tokenizer, minilm.max_seq_length
    contract = Contract("a", f"ARTICLE I. FEES\n\n1.1 Fees. {RULE}")
    assert max(token_counter(minilm)([p.text for p in cut_passages(contract)])) > 256
    for embed_headings in (False, True):
        folder = tmp_path / f"index{embed_headings}"
        settings = {"folder": folder, "embedder": word_embedder, "progress": False}
        index = PassageIndex.build([contract], embed_headings=embed_headings, **settings)
        passages = index.passages("a")
        assert max(token_counter(minilm)([embedded_text(p) if embed_headings else p.text for p in passages])) <= 256
        assert "".join(passage.text for passage in passages) == contract.text
        assert passages[0].heading == ("ARTICLE I. FEES > 1.1 Fees" if embed_headings else "1.1 Fees")
        with pytest.raises(StoreError, match="embed_headings=True"):
            PassageIndex.build([contract], embed_headings=not embed_headings, **settings)
        index.close()


def test_an_index_from_before_these_settings_is_cut_by_characters(tmp_path, word_embedder, minilm):
    options = {"folder": tmp_path, "embedder": word_embedder, "progress": False}
    PassageIndex.build([], **options).close()
    about = json.loads((tmp_path / "index.json").read_text())
    about = {key: about[key] for key in ("format", "max_chars", "generation", "probe")}
    (tmp_path / "index.json").write_text(json.dumps(about))
    word_embedder.tokenizer, word_embedder.max_seq_length = minilm.tokenizer, minilm.max_seq_length
    contract = Contract("a", f"1.1 Fees. {RULE}")
    index = PassageIndex.build([contract], **options)
    assert index.passages("a") == cut_passages(contract)
    index.close()


def test_generated_contracts_are_cut_as_without_the_bound(minilm):
    count = token_counter(minilm)
    for contract in write_corpus(("juniper", "ashgrove"), 4, seed=1).contracts:
        bounded = cut_passages(contract, max_tokens=256, count_tokens=lambda ps: count([folded(p.text) for p in ps]))
        assert bounded == cut_passages(contract)


def test_real_contracts_are_cut_in_a_fraction_of_a_second_each(minilm, seconds):
    path = Path(os.environ.get("EVERGREEN_CUAD", Path(__file__).parents[3] / "shared/cuad/CUADv1_train.json"))
    if not path.exists():
        pytest.skip(f"no CUAD at {path}: set EVERGREEN_CUAD to CUADv1_train.json")
    count = token_counter(minilm)
    contracts = read_cuad(path).contracts[::34]

    def cut():
        for contract in contracts:
            passages = cut_passages(
                contract, max_tokens=256, count_tokens=lambda ps: count([folded(p.text) for p in ps])
            )
            assert "".join(passage.text for passage in passages) == contract.text

    # All 408 take about 15 s; a machine six times slower passes.
    assert seconds(cut) / len(contracts) < 90 / 408


def test_pieces_are_pooled_from_the_tokens_of_their_text():
    embedder, text = load_embedder(), "The rent is due. Ohio law governs."
    (found,) = embed_in_context(embedder, [text], [((0, 16), (17, 34), (40, 50))])
    assert np.linalg.norm(found, axis=1) == pytest.approx([1.0, 1.0, 0.0])
    tokens = embedder.encode([text], output_value="token_embeddings")[0].numpy()
    n = len(embedder.tokenizer(text[:16])["input_ids"]) - 2
    assert found[0] == pytest.approx(unit_vectors(tokens[1 : 1 + n].sum(axis=0)), abs=1e-5)
    assert found[1] == pytest.approx(unit_vectors(tokens[1 + n : -1].sum(axis=0)), abs=1e-5)


def test_pieces_are_found_in_their_order():
    assert pieces_in("a b a c", ["a", "a  \n c"]) == ((0, 1), (4, 7))
    with pytest.raises(ValueError):
        pieces_in("a b", ["b", "a"])
