import json

import pytest

from program.config import CompileConfig, ConfigError, load_config, to_json


def test_file_then_overrides_then_defaults(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text('corpus = "c.json"\nrecipe = "p -> s -> a"\nsft_epochs = 2\nseed = 4\n')
    config = load_config(path, {"seed": 7, "rank": None})
    found = (config.corpus, config.recipe, config.sft_epochs, config.seed, config.rank)
    assert found == ("c.json", "p -> s -> a", 2.0, 7, CompileConfig("c.json").rank)


def test_a_corpus_has_to_be_given(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text("seed = 4\n")
    with pytest.raises(ConfigError, match="--corpus"):
        load_config(path, {"corpus": None})


def test_the_saved_config_loads_equal(tmp_path):
    given = {"test_corpus": "held-out.json", "max_contracts": 3, "max_val_questions": None, "quantize": "nf4"}
    config = CompileConfig("c.json", **given)
    path = tmp_path / "config.json"
    path.write_text(to_json(config))
    assert load_config(path) == config
    assert json.loads(to_json(config))["max_val_questions"] is None


def test_an_unknown_key_names_the_nearest(tmp_path):
    path = tmp_path / "c.json"
    path.write_text('{"learning_rat": 1}')
    with pytest.raises(ConfigError, match="'learning_rat'; did you mean 'learning_rate'"):
        load_config(path)
    with pytest.raises(ConfigError, match="'zzz'; known are corpus"):
        load_config(None, {"zzz": 1})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("threads", 0),
        ("threads", 2.5),
        ("threads", True),
        ("max_contracts", 0),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("sft_epochs", float("inf")),
        ("seed", -1),
        ("max_tokens", 0),
        ("max_train_questions", 0),
        ("quantize", "int8"),
        ("quantize", ""),
        ("recipe", "p->s"),
        ("recipe", "p -> "),
        ("lm", " "),
        ("corpus", 3),
    ],
)
def test_a_value_that_breaks_a_rule_is_named(key, value):
    with pytest.raises(ConfigError, match=key):
        load_config(None, {"corpus": "c.json", key: value})


@pytest.mark.parametrize(("name", "text"), [("c.yaml", "a: 1"), ("c.toml", "a = "), ("c.json", "[1]")])
def test_unreadable_files_are_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ConfigError, match=name):
        load_config(path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(tmp_path / "none.toml")
