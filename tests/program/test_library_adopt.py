"""A library that takes over the retriever that a run has tuned."""

import copy
import json
from dataclasses import asdict

import numpy as np
import pytest
import torch

from corpora.synthetic import write_corpus
from modules.embedder import load_embedder
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import Retrieve
from modules.retriever import StoreError
from program.library import adopt, index_paths, open_library
from program.library_record import Record
from program.runs import RunError

CUT = {"max_chars": 500, "overlap_chars": 50, "embed_headings": True}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What of a run is used: another embedder than the packaged one, and numbers."""
    folder = tmp_path_factory.mktemp("run")
    tuned = copy.deepcopy(load_embedder())
    with torch.no_grad():
        for parameter in tuned.parameters():
            parameter.mul_(1 + 0.1 * torch.randn_like(parameter))
    tuned.save(str(folder / "retriever" / "ab" / "embedder"))
    told = {"index": "retriever/ab/index", "embedder": "retriever/ab/embedder", "cut": CUT}
    told["settings"] = asdict(RetrievalSettings(k=2, lexical_weight=0.3))
    (folder / "retrieval.json").write_text(json.dumps(told))
    return folder


@pytest.fixture
def library(tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    for contract in write_corpus(["juniper"], 2, seed=1).contracts:
        (files / f"{contract.id}.txt").write_text(contract.text[:1500])  # the embedder is the packaged one
    index_paths([files], tmp_path / "library", progress=False)
    return tmp_path / "library"


def test_a_library_takes_a_runs_retriever_and_stays_in_step(library, run, tmp_path):
    old = open_library(library)
    question, key = "Which law governs?", old.contract_ids[0]
    before = old.search(question, 3, key)
    assert adopt(library, run, progress=False) > 0
    assert old.search(question, 3, key) == before  # who has it open goes on
    new = open_library(library)
    assert new.folder != old.folder and new.contract_ids == old.contract_ids and new.cut == CUT
    assert not np.allclose(new.embedder.encode([question]), old.embedder.encode([question]), atol=1e-3)
    assert Retrieve(new).settings == RetrievalSettings(k=2, lexical_weight=0.3)
    (tmp_path / "files" / "more.txt").write_text("SUPPLY AGREEMENT\n\n1. Law. The law of Ohio governs this Agreement.")
    report = index_paths([tmp_path / "files"], library, progress=False)
    assert len(report.indexed) == 1 and len(report.unchanged) == 2
    assert "more" in open_library(library).contract_ids and "more" not in old.contract_ids
    for index in (old, new):
        index.close()


def test_killed_before_the_swap_nothing_has_changed(library, run, monkeypatch):
    old = open_library(library)
    with monkeypatch.context() as patch:
        patch.setattr(Record, "set", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            adopt(library, run, progress=False)
    assert open_library(library) is old
    (stale,) = library.glob("index-*")
    adopt(library, run, progress=False)
    assert not stale.exists() and open_library(library).folder.is_relative_to(library)
    adopt(library, run, progress=False)  # of the ones before, the last is kept
    assert len(list(library.glob("index-*"))) == 2
    for index in (old, open_library(library)):
        index.close()


def test_what_is_no_library_or_no_run_is_refused(library, run, tmp_path):
    with pytest.raises(StoreError, match="no library in"):
        adopt(tmp_path / "nothing", run)
    with pytest.raises(RunError, match="Compile it again"):
        adopt(library, tmp_path)
