import numpy as np
import pytest

from corpora.types import Passage
from modules.embedder import packaged_folder
from modules.reranker import Reranker, load_reranker
from modules.retriever import Hit

HITS = tuple(
    Hit(Passage(f"c:{i}", "c", i, i + 1, word, "1. Fees"), 0.0) for i, word in enumerate(("law", "price", "term"))
)


def test_a_cross_encoder_from_a_folder_scores_every_pair(tmp_path):
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(packaged_folder())
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        num_labels=1,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    reranker = load_reranker(str(tmp_path))
    ranked = reranker("which law", HITS)
    assert {hit.passage for hit in ranked} == {hit.passage for hit in HITS}
    assert [hit.score for hit in ranked] == sorted((hit.score for hit in ranked), reverse=True)
    assert ranked == reranker("which law", HITS) and reranker("which law", ()) == ()


def test_refuses_a_model_with_several_scores_a_pair():
    class Classifier:
        def predict(self, pairs, **_):
            return np.zeros((len(pairs), 3))

    with pytest.raises(ValueError, match=r"shape \(3, 3\) for 3 pairs"):
        Reranker(Classifier())("law", HITS)
