"""New contracts come into the live index even where a renewal makes no better program, and nothing else changes."""

import json
import shutil

import pytest

from corpora.cuad import write_cuad
from corpora.splits import subset
from modules.index_files import read_contracts
from modules.retriever import PassageIndex
from program import run_retrieval
from program.releases.store import ReleaseStore
from program.renewal.home import Home, renewals
from program.run_retrieval import read_retrieval
from tests.program import test_renewal
from tests.program.releases_fakes import write_run
from tests.program.test_renewal import (  # noqa: F401
    CORPUS,
    Scripted,
    files,
    home,
    killed_at,
    live,
    timed,
    told,
)
from tests.program.test_renewal_killed import vectors  # noqa: F401  no Chroma: it does not outlive a fork

OLD, NEW = CORPUS.contracts[26:28], CORPUS.contracts[28:30]


@pytest.fixture(autouse=True)
def indexed(monkeypatch, words_embedder, home, files, vectors):  # noqa: F811
    """Scripted candidates have an index of OLD, whose first is among their training contracts, and NEW arrives."""
    monkeypatch.setattr(run_retrieval, "load_embedder", lambda name=None: words_embedder())

    def write(folder, number):
        write_run(folder, number)
        shutil.rmtree(folder / "index")
        PassageIndex.build(OLD, folder=folder / "index", embedder=words_embedder(), progress=False).close()
        cut = {"max_chars": 600, "overlap_chars": 0, "embed_headings": False}
        told = json.loads((folder / "retrieval.json").read_text())
        (folder / "retrieval.json").write_text(json.dumps(told | {"cut": cut}))
        data = json.loads((folder / "data.json").read_text())
        (folder / "data.json").write_text(json.dumps(data | {"splits": {"train": [OLD[0].id], "test": []}}))

    monkeypatch.setattr(test_renewal, "write_run", write)
    write_cuad(subset(CORPUS, [OLD[1].id]), home / "contracts.json")
    toml = home / "evergreen.toml"
    toml.write_text(f'contracts = "contracts.json"\ncontracts_min = 2\n{toml.read_text()}')


def arrive(home, contracts):  # noqa: F811
    write_cuad(subset(CORPUS, [one.id for one in contracts]), home / "contracts.json")


def held(home):  # noqa: F811
    release = ReleaseStore.open(home / "releases").get(live(home))
    return {one.contract.id for one in read_contracts(read_retrieval(release.path).index)}


def test_a_refused_candidate_leaves_the_live_program_on_an_index_with_what_is_new(home):  # noqa: F811
    first = told(home, Scripted(0.9))["release"]
    store = ReleaseStore.open(home / "releases")
    before = store.get(first).manifest
    for name in ("reference.npz", "state.json"):  # the drift watch has its reference
        (home / "drift" / first).mkdir(parents=True, exist_ok=True)
        (home / "drift" / first / name).write_text(f"{name} of the first")
    arrive(home, [OLD[1], *NEW])
    outcome = told(home, Scripted(0.4, 2))
    assert outcome["outcome"] == "refused" and outcome["refreshed"]["contracts"] == 2
    assert live(home) == outcome["refreshed"]["release"] not in (first, outcome["release"])
    assert held(home) == {one.id for one in (*OLD, *NEW)} and "2 new contracts are in the index" in outcome["why"]
    after = store.live().manifest
    assert after["program"] == before["program"] and after["parents"] == [first]
    same = {name for name in before["files"] if not name.startswith(("index/", "MODEL_CARD", "DATA_CARD"))}
    assert all(after["files"][name] == before["files"][name] for name in same)
    assert (home / "drift" / live(home) / "reference.npz").read_text() == "reference.npz of the first"
    # Nothing has arrived since: neither a renewal nor a refresh, and the next one starts from what is live.
    assert told(home, Scripted(0.4, 3)) is None
    again = told(home, script := Scripted(0.4, 3), by_hand="to see")
    assert "refreshed" not in again and script.configs[0].start_from.endswith(live(home))


def test_only_what_is_new_is_embedded_and_it_is_found(home, monkeypatch, words_embedder):  # noqa: F811
    told(home, Scripted(0.9))
    arrive(home, [OLD[1], *NEW])
    embedded, encode = [], words_embedder.encode

    def counted(self, texts, **options):
        embedded.extend(texts)
        return encode(self, texts, **options)

    def compile(config, **options):
        Scripted(0.4, 2)(config, **options)
        embedded.clear()

    monkeypatch.setattr(words_embedder, "encode", counted)
    told(home, compile)
    release = ReleaseStore.open(home / "releases").live()
    index = PassageIndex.open(shutil.copytree(release.path / "index", home / "opened"), words_embedder())
    new, old = (
        {index.embedded_text(passage) for one in part for passage in index.passages(one.id)} for part in (NEW, OLD)
    )
    assert len(new) > 10 and new - old <= {*embedded} and not (old - new) & {*embedded}
    passage = index.passages(NEW[0].id)[3]
    assert index.search(passage.text, 1, contract_id=NEW[0].id)[0].passage == passage
    index.close()


def test_a_promoted_candidate_needs_no_refresh_and_where_nothing_is_new_there_is_none(home):  # noqa: F811
    told(home, Scripted(0.9))
    refused = told(home, Scripted(0.4, 2), by_hand="to see")
    assert refused["outcome"] == "refused" and "refreshed" not in refused
    arrive(home, [OLD[1], *NEW])
    assert "refreshed" not in told(home, Scripted(0.95, 3))


def test_drift_that_was_renewed_for_is_known_whatever_the_index_became_since(home):  # noqa: F811
    told(home, Scripted(0.9))
    cause, amended = ("corpus", "passages moved"), OLD[1].__class__(OLD[1].id, f"{OLD[1].text}\nAmended.")
    arrive(home, [OLD[1], NEW[0]])
    told(home, Scripted(0.4, 2), by_hand="one")
    arrive(home, [OLD[1], *NEW])
    assert told(home, Scripted(0.4, 3), cause=cause)["refreshed"], "tried under the second id"
    write_cuad(subset(CORPUS, [OLD[1].id]).__class__("c", (amended, *NEW), ()), home / "contracts.json")
    assert told(home, Scripted(0.4, 4), by_hand="three")["refreshed"]
    assert told(home, Scripted(0.4, 5), cause=cause) is None, "the fourth id is the same program"


@pytest.mark.parametrize(
    "point",
    ["renew.refresh.begin", "run.finish.moved:2", "release.add.moved:2", "refresh.carried", "release.promote.moved",
     "renew.refresh.made", "renew.refresh.kept"],
)  # fmt: skip
def test_killed_in_a_refresh_it_goes_on_to_the_same_end(home, point):  # noqa: F811
    first = told(home, Scripted(0.9))["release"]
    arrive(home, [OLD[1], *NEW])
    killed_at(point, lambda: told(home, Scripted(0.4, 2)))
    assert live(home) == first or held(home) == {one.id for one in (*OLD, *NEW)}
    outcome = told(home, Scripted(0.4, 2))
    assert outcome["outcome"] == "refused" and live(home) == outcome["refreshed"]["release"]
    assert held(home) == {one.id for one in (*OLD, *NEW)} and len(renewals(Home(home))) == 2
    made = [one.manifest["lineage"] for one in ReleaseStore.open(home / "releases").list()]
    assert len([lineage for lineage in made if "refreshes" in lineage]) == 1


def test_a_contract_with_labels_keeps_its_words_and_another_takes_the_librarys(home):  # noqa: F811
    told(home, Scripted(0.9))
    changed = [one.__class__(one.id, f"{one.text}\nAmended."[10:]) for one in OLD]
    corpus = subset(CORPUS, [one.id for one in (*OLD, *NEW)])
    write_cuad(corpus.__class__("c", (*changed, *NEW), ()), home / "contracts.json")
    outcome = told(home, Scripted(0.4, 2))
    assert outcome["refreshed"]["contracts"] == 3
    release = ReleaseStore.open(home / "releases").live()
    texts = {one.contract.id: one.contract.text for one in read_contracts(read_retrieval(release.path).index)}
    assert texts[OLD[0].id] == OLD[0].text and texts[OLD[1].id] == changed[1].text
