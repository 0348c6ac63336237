"""The doctor: a whole home is well, every fault is found by its own check, and nothing is changed by looking."""

import fcntl
import json
import shutil
import sqlite3
from datetime import timedelta
from types import SimpleNamespace

import pytest

from corpora.cuad import read_cuad, write_cuad
from corpora.splits import subset
from program.history import checks_home, checks_machine, doctor
from program.history.checks_config import check_config
from program.history.checks_home import check_clock, check_releases, check_renewals, check_stores
from program.history.checks_machine import check_index, check_machine, check_models, check_versions
from program.history.doctor import examine, finding_lines
from program.renewal.home import Home
from tests.program import history_fakes
from tests.program.conftest import WordEmbedder
from tests.program.history_fakes import NOW, YEAR, make_home, scored_run, servable

LATER = NOW + timedelta(days=1)


@pytest.fixture(scope="module")
def well(tmp_path_factory):
    """A home after one renewal, whose release can be served."""
    embedder = WordEmbedder()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(history_fakes, "scored_run", lambda *told: servable(scored_run(*told), embedder))
        return make_home(tmp_path_factory.mktemp("well") / "acme", days=3, year=YEAR[:1])


@pytest.fixture(autouse=True)
def embedder(monkeypatch):
    monkeypatch.setattr("program.run_retrieval.load_embedder", lambda name=None: WordEmbedder())


@pytest.fixture
def home(well, tmp_path):
    """A copy that a test may damage."""
    return Home(shutil.copytree(well.path, tmp_path / "acme"))


def found(findings, level):
    return {one.what: one.why for one in findings if one.level == level}


def writable(path):
    path.parent.chmod(0o755)
    path.chmod(0o644)
    return path


def test_a_home_that_is_well_is_changed_by_nothing(well):
    def state():
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in sorted(well.path.rglob("*"))}

    before = state()
    findings = examine(well, now=lambda: LATER)
    assert state() == before
    assert found(findings, "error") == {} and set(found(findings, "warning")) <= {"gate", "memory", "disk"}
    assert "about 1136 are needed" in found(findings, "warning")["gate"]
    assert {"base model", "embedder", "index", "live release", "feedback.db", "traces.db", "clock"} <= set(
        found(findings, "ok")
    )
    assert finding_lines(findings)[-1].startswith("0 errors, ")
    assert all(bool(one.remedy) == (one.level != "ok") for one in findings)


def test_a_check_that_breaks_down_is_an_error_and_stops_no_other(well, monkeypatch):
    for name in ("check_models", "check_index", "check_config", "check_releases", "check_stores", "check_renewals"):
        monkeypatch.setattr(doctor, name, lambda home: [])

    def breaks(home):
        raise OSError("no such device")

    monkeypatch.setattr(doctor, "check_machine", breaks)
    findings = examine(well, now=lambda: LATER)
    assert "no such device" in found(findings, "error")["machine"] and "clock" in found(findings, "ok")


def test_a_clock_behind_the_newest_event_is_an_error(well):
    (behind,) = check_clock(well, NOW - timedelta(days=2))
    assert behind.level == "error" and "traces.db has 2031-06-02" in behind.why
    assert check_clock(well, LATER)[0].level == "ok"


def test_each_part_dates_the_clock(tmp_path):
    home = Home(tmp_path)
    assert check_clock(home, NOW)[0].level == "ok"
    (home.renewals / "0001").mkdir(parents=True)
    (home.drift / "0001-00000000").mkdir(parents=True)
    after = LATER.isoformat()
    for name, content in {
        "watch.json": {"looked": after}, "renewals/0001/outcome.json": {"ended": after},
        "drift/0001-00000000/reports.jsonl": {"at": LATER.timestamp()},
    }.items():  # fmt: skip
        (tmp_path / name).write_text(json.dumps(content) + "\n")
        assert check_clock(home, NOW)[0].level == "error", name
        (tmp_path / name).write_text("{\n")
        assert check_clock(home, NOW)[0].level == "ok"


def test_a_store_that_is_damaged_foreign_or_no_database_is_an_error(home):
    page = bytearray(home.traces.read_bytes())
    page[8192 : 8192 + 2048] = b"\xff" * 2048
    home.traces.write_bytes(page)
    home.feedback.write_text("no database at all, but long enough to look into" * 100)
    errors = found(check_stores(home), "error")
    assert "damaged" in errors["traces.db"] or "malformed" in errors["traces.db"]
    assert "not a database" in errors["feedback.db"]
    shutil.copy(_other_database(home.path), home.feedback)
    assert "no feedback store" in found(check_stores(home), "error")["feedback.db"]


def _other_database(folder):
    path = folder / "other.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE t (x)")
    db.close()
    return path


def test_a_salt_that_is_gone_or_may_be_read_by_others_is_an_error(home):
    home.feedback.with_name("feedback.db.salt").chmod(0o644)
    home.traces.with_name("traces.db.salt").unlink()
    errors = found(check_stores(home), "error")
    assert "others" in errors["feedback.db.salt"] and "gone" in errors["traces.db.salt"]


def test_a_log_run_wild_and_a_skill_that_was_changed_are_found(home, monkeypatch):
    monkeypatch.setattr(checks_home, "WAL_LARGE_BYTES", 10)
    db = sqlite3.connect(home.traces)
    db.execute("DELETE FROM traces WHERE seq = 1")
    db.commit()  # open still: the log stays beside the file
    next(home.skills.glob("*/test.json")).write_text("{}")
    findings = check_stores(home)
    db.close()
    assert "traces.db-wal" in found(findings, "warning") and "skills" in found(findings, "error")


def test_a_release_with_a_changed_file_is_an_error_and_a_killed_writer_leaves_a_warning(home):
    (home.releases / ".draft-x").mkdir()
    assert "drafts" in found(check_releases(home), "warning")
    with open(home.releases / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "drafts" not in found(check_releases(home), "warning")
    live = (home.releases / "LIVE").read_text().strip()
    writable(home.releases / live / "config.json").write_text("{}")
    assert "config.json" in found(check_releases(home), "error")["live release"]
    writable(home.releases / live / "manifest.json").write_text("{}")
    assert live in found(check_releases(home), "warning")["other releases"]
    (home.releases / "LIVE").write_text("nonsense\n")
    assert "nonsense" in found(check_releases(home), "error")["live release"]
    (home.releases / "LIVE").unlink()
    assert "none is live" in found(check_releases(home), "warning")["live release"]


def test_unfinished_renewals_are_told_from_one_that_runs(home):
    folder = home.renewals / "0002"
    (folder / "stages").mkdir(parents=True)
    for stage in ("inputs", "plan"):
        (folder / "stages" / f"{stage}.json").write_text("{}")
    (home.path / ".renewal.lock").touch()
    assert found(check_renewals(home), "warning") == {"renewals": "0002 stopped after the stage plan"}
    with open(home.path / ".renewal.lock") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert found(check_renewals(home), "ok") == {"renewals": "0002 is running, after the stage plan"}
    (folder / "stages" / "shadow.json").write_text("{}")
    assert "asked silently" in found(check_renewals(home), "ok")["renewals"]
    (folder / "outcome.json").write_text("{")
    assert "0002/outcome.json is damaged" in found(check_renewals(home), "error")["renewals"]


def test_an_index_without_all_its_vectors_is_an_error(home):
    live = home.releases / (home.releases / "LIVE").read_text().strip()
    contract = next((live / "index" / "contracts").iterdir())
    row = json.loads(contract.read_text())
    row["passages"].append([0, 40, "another"])
    writable(contract).write_text(json.dumps(row))
    (error,) = check_index(home)
    assert error.level == "error" and "1 of 1 contracts lack vectors" in error.why
    assert json.loads(contract.read_text()) == row


def test_a_base_with_other_files_than_the_release_was_made_on_is_an_error(home, monkeypatch, tmp_path):
    from optimizers.local_lm import weights

    base = tmp_path / "base"
    shutil.copytree(weights.BUNDLED["evergreen-base"], base)
    monkeypatch.setitem(weights.BUNDLED, "evergreen-base", base)
    monkeypatch.setattr("modules.embedder.packaged_folder", lambda: None)
    assert found(check_models(home), "error") == {}
    config = base / "config.json"
    config.write_text(config.read_text() + "\n")
    assert "not those that the live release" in found(check_models(home), "error")["base model"]
    whole = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(whole[:-100])
    assert "model.safetensors is damaged" in found(check_models(home), "error")["base model"]
    config.unlink()
    assert "no config.json" in found(check_models(home), "error")["base model"]


def test_another_embedder_than_was_published_is_an_error(home, monkeypatch, tmp_path):
    from modules import embedder

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").write_text("other weights")
    spec = SimpleNamespace(submodule_search_locations=[str(tmp_path)])
    monkeypatch.setattr(embedder, "find_spec", lambda name: spec)
    assert "other weights" in found(check_models(home), "error")["embedder"]


def test_versions_out_of_range_and_a_machine_too_small_are_found(well, monkeypatch):
    assert found(check_versions(), "error") == {}
    lines = ["pytest>=999", "no-such-package>=1", "ruff; extra == 'x'"]
    monkeypatch.setattr(checks_machine, "_needs", lambda: (">=9", lines))
    errors = [one.why for one in check_versions() if one.level == "error"]
    assert len(errors) == 3 and "is not >=9" in errors[0] and ">=999 is needed" in errors[1]
    assert "no-such-package is not installed" in errors[2]
    monkeypatch.setattr(checks_machine.shutil, "disk_usage", lambda path: SimpleNamespace(free=5e8))
    monkeypatch.setattr(checks_machine.psutil, "virtual_memory", lambda: SimpleNamespace(available=1e9, total=8e9))
    findings = check_machine(well)
    assert "disk" in found(findings, "error") and "memory" in found(findings, "warning")


def test_the_config_and_what_it_names_are_checked(home):
    toml = home.path / "evergreen.toml"
    for line, words in (("corpse = 1", "corpse"), ("[compile]\nrenk = 4", "renk"), ("[gate]\nlevel = 2", "level")):
        toml.write_text(f"{history_fakes.TOML}{line}\n")
        assert words in found(check_config(home), "error")["evergreen.toml"]
    toml.write_text('corpus = "gone.json"\nfrozen = "frozen.json"\ncontracts = "none.json"\n')
    assert {"file of corpus", "file of contracts"} <= set(found(check_config(home), "error"))


def test_a_frozen_set_that_is_learnt_from_is_found(home):
    labelled, frozen = read_cuad(home.path / "labelled.json"), home.path / "frozen.json"
    shutil.copy(home.path / "labelled.json", frozen)
    assert "2 of the corpus's 2" in found(check_config(home), "error")["frozen set"]
    frozen.unlink()
    write_cuad(subset(labelled, [labelled.contracts[0].id]), frozen)
    assert "1 of the corpus's 2" in found(check_config(home), "warning")["frozen set"]
    (home.path / "evergreen.toml").write_text(f'{history_fakes.TOML}contracts = "labelled.json"\n')
    assert "1 of the unlabelled" in found(check_config(home), "error")["frozen set"]
    run = home.releases / (home.releases / "LIVE").read_text().strip()
    data = json.loads((run / "data.json").read_text())
    data["splits"]["train"].append(labelled.contracts[0].id)
    writable(run / "data.json").write_text(json.dumps(data))
    assert "has learnt from 1" in found(check_config(home), "error")["frozen set"]


def test_a_frozen_set_that_is_too_small_or_used_up_is_told(home):
    (home.path / "evergreen.toml").write_text(
        f"{history_fakes.TOML}[gate]\ndetectable = 0.3\ndiscordance = 0.3\nmax_decisions = 1\n"
    )
    assert "gate" in found(check_config(home), "ok")
    decision = json.loads((home.renewals / "0001" / "decision.json").read_text())
    decision["contracts"] = [read_cuad(home.path / "frozen.json").contracts[0].id]
    (home.renewals / "0001" / "decision.json").write_text(json.dumps(decision))
    assert "as often as it may" in found(check_config(home), "warning")["gate"]
