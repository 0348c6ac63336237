import hashlib

import pytest

from modules import embedder
from modules.embedder import EmbedderError, load_embedder, packaged_folder, verify_weights


def test_the_packaged_weights_are_the_published_ones_and_load_once_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = packaged_folder()
    assert (folder / "model.safetensors").is_file()
    model = load_embedder()
    assert load_embedder() is model and str(model.device) == "cpu"
    same, other = "governed by the laws of Ohio", "the price of one bottle"
    law, near, far = model.encode(["Which law governs?", same, other], normalize_embeddings=True)
    assert law.shape == (384,) and law @ near > law @ far


def test_refuses_other_weights_before_loading_them(tmp_path, monkeypatch):
    weights = tmp_path / "model" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"other")
    verify_weights(weights, hashlib.sha256(b"other").hexdigest())

    class Spec:
        submodule_search_locations = [str(tmp_path)]

    monkeypatch.setattr(embedder, "find_spec", lambda _: Spec)
    monkeypatch.setattr(embedder, "_loaded", {})
    monkeypatch.setattr(embedder, "SentenceTransformer", lambda *_, **__: pytest.fail("loaded unverified weights"))
    with pytest.raises(EmbedderError, match="has the SHA-256"):
        load_embedder()
    weights.unlink()
    with pytest.raises(EmbedderError, match="cannot be read"):
        load_embedder()
    monkeypatch.setattr(embedder, "find_spec", lambda _: None)
    with pytest.raises(EmbedderError, match="not installed"):
        load_embedder()


def test_another_name_goes_to_sentence_transformers_and_a_folder_never_to_the_hub(tmp_path, monkeypatch):
    calls = []

    def fake(where, **options):
        calls.append((where, options))
        return object()

    monkeypatch.setattr(embedder, "_loaded", {})
    monkeypatch.setattr(embedder, "SentenceTransformer", fake)
    assert load_embedder("some/model") is load_embedder("some/model")
    load_embedder(str(tmp_path))
    assert [where for where, _ in calls] == ["some/model", str(tmp_path)]
    assert [options["local_files_only"] for _, options in calls] == [False, True]
    assert all(options["trust_remote_code"] is False for _, options in calls)


def test_an_embedder_that_cannot_be_loaded_is_named(monkeypatch):
    def fails(*_, **__):
        raise OSError("no such model.")

    monkeypatch.setattr(embedder, "_loaded", {})
    monkeypatch.setattr(embedder, "SentenceTransformer", fails)
    with pytest.raises(EmbedderError, match="'some/model' cannot be loaded: no such model"):
        load_embedder("some/model")
