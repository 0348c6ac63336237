import json
import os
import shutil
import sqlite3
import threading
import zipfile
import zlib
from dataclasses import fields

import numpy as np
import pytest
from filelock import FileLock

from corpora.errors import CorpusError
from corpora.files.limits import FileLimits
from corpora.files.places import place_of
from corpora.files.reader import FileReader
from corpora.types import Contract
from modules import index_files
from modules.retriever import PassageIndex, StoreError
from program import library_run
from program.library import index_paths, open_library
from program.library_record import INDEXED, Record
from program.library_run import text_sha256

LISTS = ("indexed", "replaced", "unchanged", "duplicates", "missing", "pruned", "failed")


class WordEmbedder:
    """Bags of hashed words; counts what it embeds."""

    def __init__(self):
        self.seen = []

    def encode(self, sentences, **_):
        self.seen += sentences
        rows = np.ones((len(sentences), 32), dtype=np.float32) / 64
        for row, sentence in zip(rows, sentences, strict=True):
            for word in sentence.lower().split():
                row[zlib.crc32(word.encode()) % 32] += 1
        return rows


class Library:
    """A folder of files and a library of them; `run` gives what is not empty in the report, by names in the folder."""

    def __init__(self, root):
        self.root, self.files, self.folder = root, root / "files", root / "library"
        self.files.mkdir()
        self.embedder = WordEmbedder()

    def write(self, name, text):
        path = self.files / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    def run(self, *names, **options):
        paths = [self.files / name for name in names] or [self.files]
        self.report = index_paths(paths, self.folder, embedder=self.embedder, progress=False, **options)
        self.check()
        found = {name: getattr(self.report, name) for name in LISTS}
        short = lambda one: one.removeprefix(f"{self.files}/") if isinstance(one, str) else (short(one[0]), one[1])  # noqa: E731
        return {name: [short(one) for one in value] for name, value in found.items() if value}

    def contents(self):
        index = open_library(self.folder, self.embedder)
        return {key: index.contract_text(key) for key in index.contract_ids}

    def check(self):
        check(self.folder, self.embedder)


def check(folder, embedder):
    """The index holds the contracts of the record and no other, and Chroma their passages' vectors and no other."""
    index = open_library(folder, embedder)
    record = Record(folder, create=False)
    recorded = {row.contract_id: row.text_sha256 for row in record.sources("status = ?", INDEXED)}
    ids = {row.contract_id for row in record.sources("status != 'failed'")}
    record.close()
    held = {key: text_sha256(index.contract_text(key)) for key in index.contract_ids}
    assert held == recorded and ids == set(recorded)
    passages = {hit.passage.id for key in held for hit in index.search("x", 10_000, key)}
    assert set(index._store.passage_ids()) == passages
    for key in held:  # as many vectors as passages, or search raises
        assert index.search("term", 1, key)
    assert len(list((folder / "contracts").iterdir())) == len(held)


@pytest.fixture
def library(tmp_path):
    return Library(tmp_path)


def test_first_run_second_run_and_what_is_asked_of_it(library):
    library.write("a.txt", "Alpha agreement.\n\nThe term is three years.")
    library.write("sub/b.md", "Beta agreement.")
    library.write("sub/broken.pdf", "no pdf")
    failed = [("sub/broken.pdf", "it is named .pdf, but its content is text and no PDF")]
    assert library.run() == {"indexed": ["a.txt", "sub/b.md"], "failed": failed}
    assert library.report.exit_code == 0 and library.report.n_contracts == 2 == library.report.n_passages
    assert library.contents() == {"a": "Alpha agreement.\n\nThe term is three years.", "sub/b": "Beta agreement."}
    index = open_library(library.folder, library.embedder)
    (hit,) = index.search("three years term", 1)
    assert hit.passage.contract_id == "a" and place_of(index.contract("a"), 20).paragraph == 2
    library.embedder.seen.clear()
    assert library.run() == {"unchanged": ["a.txt", "sub/b.md"], "failed": failed}
    assert library.report.embedded_passages == 0 and not any("agreement." in text for text in library.embedder.seen)


def test_unchanged_files_are_not_parsed_again(library, monkeypatch):
    library.write("a.txt", "one")
    library.write("bad.pdf", "no pdf")
    library.run()
    parsed = []
    real = FileReader.read
    monkeypatch.setattr(FileReader, "read", lambda self, path: (parsed.append(path.name), real(self, path))[1])
    library.run()
    os.utime(library.files / "a.txt", (1, 1))  # another time, the same bytes
    library.run()
    assert parsed == []
    library.run(retry_failed=True)
    assert parsed == ["bad.pdf"]
    library.run(limits=FileLimits(seconds=19))
    assert parsed == ["bad.pdf"] * 2
    assert library.run(limits=FileLimits(seconds=19))["unchanged"] == ["a.txt"] and len(parsed) == 2
    library.write("a.txt", "two")
    assert library.run()["replaced"] == ["a.txt"] and parsed[2:] == ["a.txt", "bad.pdf"]


def test_a_change_within_the_same_time_stamp_is_seen(library):
    path = library.write("a.txt", "one")
    library.run()
    stamp = path.stat().st_mtime_ns
    library.write("a.txt", "two")
    os.utime(path, ns=(stamp, stamp))
    assert library.run() == {"replaced": ["a.txt"]} and library.contents() == {"a": "two"}


def test_a_changed_file_replaces_its_passages_under_the_same_id(library):
    library.write("a.txt", "escrow " * 200)
    library.run()
    library.write("a.txt", "audit")
    assert library.run() == {"replaced": ["a.txt"]}
    assert library.contents() == {"a": "audit"} and library.report.n_passages == 1


def test_the_same_text_twice_is_one_contract(library):
    library.write("a.txt", "same")
    library.write("b.html", "<p>same")
    library.write("z.zip", b"")
    with zipfile.ZipFile(library.files / "z.zip", "w") as archive:
        archive.writestr("in/c.txt", "same")
        archive.writestr("in/d.txt", "other")
    wanted = {"indexed": ["a.txt", "z.zip!in/d.txt"], "duplicates": [("b.html", "a"), ("z.zip!in/c.txt", "a")]}
    assert library.run() == wanted
    assert library.contents() == {"a": "same", "z/in/d": "other"}
    # The first changes: the next takes its place.
    library.write("a.txt", "changed")
    wanted = {"replaced": ["a.txt"], "indexed": ["b.html"], "duplicates": [("z.zip!in/c.txt", "b")]}
    assert library.run() == wanted | {"unchanged": ["z.zip!in/d.txt"]}
    assert library.contents() == {"a": "changed", "b": "same", "z/in/d": "other"}
    # The second fails: likewise.
    library.write("b.html", "")
    assert library.run()["failed"] == [("b.html", "it is empty")]
    assert library.contents() == {"a": "changed", "z/in/c": "same", "z/in/d": "other"}
    # A file that comes to have another's text gives up its own.
    library.write("a.txt", "other")
    assert library.run()["duplicates"] == [("a.txt", "z/in/d")]
    assert library.contents() == {"z/in/c": "same", "z/in/d": "other"}


def test_what_is_gone_is_named_and_with_prune_taken_out(library):
    for name in ("a.txt", "twin.txt", "b.txt", "bad.pdf"):
        library.write(name, "same" if name in ("a.txt", "twin.txt") else name)
    library.write("other/c.txt", "c")
    library.run()
    for name in ("a.txt", "b.txt", "bad.pdf"):
        (library.files / name).unlink()
    for _ in range(2):
        assert library.run() == {"missing": ["a.txt", "b.txt"], "unchanged": ["other/c.txt", "twin.txt"]}
    assert set(library.contents()) == {"a", "b", "other/c"}
    assert library.run("other", prune=True) == {"unchanged": ["other/c.txt"]}
    library.embedder.seen.clear()
    assert library.run(prune=True) == {"pruned": ["a.txt", "b.txt"], "unchanged": ["other/c.txt", "twin.txt"]}
    # The text that another file has too keeps its contract.
    assert library.contents() == {"a": "same", "other/c": "c"} and "same" not in library.embedder.seen
    assert library.run() == {"unchanged": ["other/c.txt", "twin.txt"]}
    library.write("a.txt", "new")
    assert library.run()["indexed"] == ["a.txt"] and set(library.contents()) == {"a", "a.txt", "other/c"}


def test_members_gone_from_a_zip_are_named_until_they_are_pruned(library):
    def write(*names):
        with zipfile.ZipFile(library.files / "z.zip", "w") as archive:
            for name in names:
                archive.writestr(name, name)

    write("a.txt", "b.txt")
    library.run()
    write("b.txt")
    for _ in range(2):
        assert library.run() == {"missing": ["z.zip!a.txt"], "unchanged": ["z.zip!b.txt"]}
    assert library.run(prune=True) == {"pruned": ["z.zip!a.txt"], "unchanged": ["z.zip!b.txt"]}
    assert library.contents() == {"z/b": "b.txt"}
    library.write("z.zip", b"PK\x03\x04 broken")
    assert [key for key, _ in library.run(prune=True)["failed"]] == ["z.zip"] and library.contents() == {}
    assert library.report.exit_code == 1


def test_ids_are_made_unique_by_ending_and_number_and_stay(library):
    cuad = {"data": [{"title": "a", "paragraphs": [{"context": "from cuad", "qas": []}]}]}
    library.write("x/a.json", json.dumps(cuad))
    library.write("a.txt", "1")
    library.write("a.md", "2")
    library.write("Acme Inc. v1.2", "3")
    library.write("a.md~2.txt", "4")
    library.run()
    assert library.contents() == {"Acme Inc. v1.2": "3", "a": "2", "a.txt": "1", "a.md~2": "4", "a~2": "from cuad"}
    before = library.contents()
    (library.files / "a.md").unlink()
    library.write("a.txt", "1b")
    library.run(prune=True)
    del before["a"]
    assert library.contents() == before | {"a.txt": "1b"}
    library.run("a.txt", "x")
    assert library.contents() == before | {"a.txt": "1b"}


def test_a_file_the_disk_refuses_stays_and_is_read_the_next_time(library, monkeypatch):
    library.write("a.txt", "one")
    library.run()
    library.write("a.txt", "two")
    real = library_run._see

    def refuse(found, tag):
        seen, _ = real(found, tag)
        return seen, library_run.Reading(failure="it cannot be read (Input/output error)", passing=True)

    monkeypatch.setattr(library_run, "_see", refuse)
    reason = "it cannot be read (Input/output error); what was read of it before stays"
    assert library.run() == {"failed": [("a.txt", reason)]} and library.contents() == {"a": "one"}
    monkeypatch.setattr(library_run, "_see", real)
    assert library.run() == {"replaced": ["a.txt"]} and library.contents() == {"a": "two"}


def test_odd_names_and_things_that_are_no_files(library):
    library.write("new\nline.txt", "1")
    with open(os.fsencode(library.files) + b"/\xff.txt", "wb") as file:
        file.write(b"2")
    os.mkfifo(library.files / "pipe.txt")
    (library.files / "dangling.txt").symlink_to("nowhere")
    report = library.run()
    assert report["indexed"] == ["\\xff.txt", "new\\nline.txt"]
    reasons = [("dangling.txt", "it cannot be read (No such file or directory)"), ("pipe.txt", "it is no regular file")]
    assert report["failed"] == reasons
    assert set(library.contents()) == {"\\xff", "new\\nline"}
    assert library.run()["unchanged"] == report["indexed"]


def test_a_library_inside_its_own_files_is_not_read(library):
    library.write("a.txt", "one")
    for _ in range(2):
        report = index_paths([library.root], library.folder, embedder=library.embedder, progress=False)
        assert len(report.indexed + report.unchanged) == 1 and report.failed == ()


def test_refuses_other_folders_settings_and_paths(library, tmp_path):
    library.write("a.txt", "one")
    with pytest.raises(CorpusError, match="there is no"):
        library.run("nowhere")
    assert not library.folder.exists()
    PassageIndex.build([Contract("run", "text")], folder=tmp_path / "run", embedder=library.embedder, progress=False)
    with pytest.raises(StoreError, match="not empty and holds no library"):
        index_paths([library.files], tmp_path / "run", embedder=library.embedder)
    with pytest.raises(StoreError, match="there is no library in .*evergreen index"):
        open_library(tmp_path / "run")
    library.run(max_chars=50)
    assert library.run() == {"unchanged": ["a.txt"]}  # 50 is remembered
    with pytest.raises(StoreError, match="built with max_chars=50, and max_chars=600"):
        library.run(max_chars=600)
    with sqlite3.connect(library.folder / "library.sqlite3") as db:
        db.execute("PRAGMA user_version = 9")
    with pytest.raises(StoreError, match="of version 9, not 1"):
        library.run()
    for path in library.folder.glob("library.sqlite3*"):
        path.unlink()
    (library.folder / "library.sqlite3").write_bytes(b"not a database" * 99)
    with pytest.raises(StoreError, match="damaged"):
        library.run()


def test_a_second_run_waits_and_is_then_refused(library, monkeypatch):
    library.write("a.txt", "one")
    library.run()
    monkeypatch.setattr(index_files, "LOCK_TIMEOUT_S", 0.1)
    held, release = threading.Event(), threading.Event()

    def hold():
        with FileLock(library.folder / ".library.lock"):
            held.set()
            release.wait(20)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(20)
    with pytest.raises(StoreError, match="another process has been writing to the index in .*library"):
        library.run()
    monkeypatch.setattr(index_files, "LOCK_TIMEOUT_S", 20)
    threading.Timer(0.3, release.set).start()
    assert library.run() == {"unchanged": ["a.txt"]}
    thread.join()


def test_an_error_in_the_middle_leaves_what_the_next_run_mends(library, monkeypatch):
    monkeypatch.setattr(library_run, "_BATCH_CHARS", 1)
    for name in "abcd":
        library.write(f"{name}.txt", f"text of {name}")
    library.run("a.txt")
    library.write("a.txt", "another text of a")
    real = Record.write

    def dies(self, *, files=(), sources=()):
        if any(row.contract_id == "c" for row in sources):
            raise KeyboardInterrupt  # after the index was written, before the record
        real(self, files=files, sources=sources)

    monkeypatch.setattr(Record, "write", dies)
    with pytest.raises(KeyboardInterrupt):
        library.run()
    monkeypatch.setattr(Record, "write", real)
    # c is in the index and not in the record; named alone, b brings the library back in step.
    assert "c" in open_library(library.folder, library.embedder).contract_ids
    assert library.run("b.txt") == {"unchanged": ["b.txt"]}
    assert set(library.contents()) == {"a", "b"}
    assert library.run()["indexed"] == ["c.txt", "d.txt"]


def test_a_contract_replaced_without_its_record_is_read_again(library):
    library.write("a.txt", "one")
    library.write("b.txt", "two")
    library.run()
    index = open_library(library.folder, library.embedder)
    index.add([Contract("a", "what a killed run wrote"), Contract("ghost", "nobody's")], progress=False)
    index.remove(["b"])
    assert library.run("a.txt") == {"unchanged": ["a.txt", "b.txt"]} and library.contents() == {"a": "one", "b": "two"}
    index.add([Contract("a", "again")], progress=False)
    index.remove(["b"])
    for name in "ab":
        (library.files / f"{name}.txt").unlink()
    library.write("c.txt", "three")
    gone = "the last run was interrupted, and the file is no longer there"
    assert library.run() == {"indexed": ["c.txt"], "failed": [("a.txt", gone), ("b.txt", gone)]}


def test_the_report_is_complete_and_frozen(library):
    library.write("a.txt", "one agreement\x00")
    report = index_paths([library.files], library.folder, embedder=library.embedder, progress=False)
    assert {field.name for field in fields(report)} >= set(LISTS)
    assert report.notes == ((f"{library.files}/a.txt", "1 control characters left out"),)
    with pytest.raises(AttributeError):
        report.indexed = ()
    shutil.rmtree(library.folder)
