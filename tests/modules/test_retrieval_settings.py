import json

import pytest

from modules.absence import AnswerModel
from modules.retrieval_settings import RetrievalSettings, read_settings, write_settings
from modules.retriever import StoreError
from modules.spans import SpanModel


def test_settings_come_back_and_absent_ones_are_the_defaults(tmp_path):
    assert read_settings(tmp_path) == RetrievalSettings()
    answers = AnswerModel((1.0, 0.5, 0.0, 0.1, 2.0), -1.0, {"Term": 0.5}, 0.2)
    spans = SpanModel(9.0, 1.0, 0.1, 0.5, -3.0, {"Term": 0.5}, in_phrases=("Term",))
    settings = RetrievalSettings(k=6, fusion="sum", lexical_weight=0.25, answers=answers, spans=spans)
    write_settings(tmp_path, settings)
    assert read_settings(tmp_path) == settings


@pytest.mark.parametrize(
    ("given", "match"),
    [({"k": 0}, "k is 0"), ({"depth": 0}, "depth is 0"), ({"fusion": "max"}, "fusion is 'max'"), 
     ({"neighbours": -1}, "neighbours is -1"),
     ({"dense_weight": 0, "lexical_weight": 0}, "both 0"), ({"rrf_constant": float("nan")}, "rrf_constant is nan")]
)  # fmt: skip
def test_refuses_what_makes_no_sense(tmp_path, given, match):
    with pytest.raises(ValueError, match=match):
        RetrievalSettings(**given)
    (tmp_path / "retrieval.json").write_text(json.dumps(given))
    with pytest.raises(StoreError, match=match):
        read_settings(tmp_path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "damaged"),
        ("[]", "holds a list"),
        ('{"kk": 1}', "unknown keys kk"),
        ('{"k": "x"}', "rule"),
        ('{"answers": {"weights": []}}', "rule"),
    ],
)
def test_damaged_files_are_named(tmp_path, content, match):
    (tmp_path / "retrieval.json").write_text(content)
    with pytest.raises(StoreError, match=match):
        read_settings(tmp_path)
