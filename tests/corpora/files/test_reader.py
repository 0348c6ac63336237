import io
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from pathlib import Path

import pytest

from corpora.errors import CorpusError
from corpora.files import child
from corpora.files.child import Worker
from corpora.files.limits import FileLimits
from corpora.files.reader import FileReader
from corpora.files.walk import Found, find_files, shown
from corpora.types import Place

CUAD = '{"version": "1", "data": [{"title": "%s", "paragraphs": [{"context": "%s", "qas": []}]}]}'


def test_every_kind_is_read_by_its_content(make, read_one):
    page = "<html><body><p>One</p><p>Two</p>"
    contents = {"txt": "One\n\nTwo", "html": page, "pdf": make.pdf(["One"], ["Two"]), "docx": make.docx("One", "Two")}
    for kind, content in contents.items():
        reading = read_one(f"right.{kind}", content)
        pages = (1, 2) if kind == "pdf" else (None, None)
        paragraphs = (1, 1) if kind == "pdf" else (1, 2)
        assert reading.text == "One\n\nTwo" and reading.notes == ()
        assert reading.places == (Place(0, pages[0], paragraphs[0]), Place(5, pages[1], paragraphs[1]))
        if kind != "txt":
            wrong = read_one(f"wrong.{'pdf' if kind != 'pdf' else 'docx'}", content)
            assert (
                wrong.text == reading.text and f"named .{'pdf' if kind != 'pdf' else 'docx'}, read as" in wrong.notes[0]
            )
    assert read_one("a.md", "# One\n\nTwo").text == "# One\n\nTwo"
    assert read_one("no_ending", "One").notes == () == read_one("some.rst", "One").notes


def test_a_wrong_ending_is_refused_with_both_named(make, refused, read):
    assert "named .pdf, but its content is text and no PDF" in refused("a.pdf", "just words")
    assert "named .docx, but its content is text and no Word" in refused("a.docx", "just words")
    assert "named .pdf and is a PNG image" in refused("b.pdf", b"\x89PNG\r\n\x1a\n" + bytes(99))
    assert "named .txt and is of no kind that is read, nor text" in refused("c.txt", bytes(range(256)) * 4)
    assert "old or encrypted Office file" in refused("d.doc", b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600))
    assert refused("e.txt", b"") == "it is empty"
    assert "there is no text in it" in refused("f.txt", " \n\t\n")
    assert "is not JSON in UTF-8" in refused("g.json", "plain words")
    assert "no 'data'" in refused("h.json", "{}") and "/" not in refused("h.json", "{}").split(":")[0]
    (reading,) = read("cuad.txt", CUAD % ("T", "text"))
    assert (reading.title, reading.text, reading.notes) == ("T", "text", ("named .txt, read as JSON",))


def test_cuad_files_give_their_contracts_unchanged(read):
    two = CUAD.replace("}]}", '}]}, {"title": "second", "paragraphs": [{"context": "2", "qas": []}]}', 1)
    readings = read("c.json", two % ("first", "a\\r\\nb\\u0007"))
    assert [(one.title, one.text, one.places) for one in readings] == [("first", "a\r\nb\x07", ()), ("second", "2", ())]
    assert [one.share for one in readings] == [5 / 6, 1.0]


def test_zips_are_gone_through(make, read):
    inner = make.zip({"deep.txt": "deep", "._deep.txt": "x"})
    members = {"b/two.txt": "two", "a.pdf": make.pdf(["one"]), "inner.zip": inner, ".hidden/x.txt": "x", "dir/": ""}
    readings = read("all.zip", make.zip(members | {"__MACOSX/b.txt": "x", "broken.docx": "words"}))
    found = {one.members: one.text or one.failure for one in readings}
    assert found == {
        ("a.pdf",): "one",
        ("b/two.txt",): "two",
        ("broken.docx",): "it is named .docx, but its content is text and no Word (.docx)",
        ("inner.zip", "deep.txt"): "deep",
    }
    assert readings[-1].share == 1.0 and list(found) == sorted(found)


def test_zips_that_are_traps_are_refused_by_the_number(make, read, refused, tmp_path):
    def only(content, **limits):
        path = tmp_path / "z.zip"
        path.write_bytes(content)
        with FileReader(FileLimits(seconds=10, **limits)) as reader:
            return {"!".join(one.members): one.failure for one in reader.read(path)}

    assert "3 entries, and 2 is the limit" in only(make.zip(dict.fromkeys("abc", "x")), zip_entries=2)[""]
    assert (
        "unpacks to 300 bytes, and 200 is the limit"
        in only(make.zip(dict.fromkeys("abc", "x" * 100)), zip_bytes=200)[""]
    )
    bomb = only(make.zip({"b.txt": "0" * 5_000_000, "ok.txt": "fine"}))
    assert "times its packed size, and 200 is the limit" in bomb["b.txt"] and bomb["ok.txt"] is None
    assert (
        "unpacks to 2,000 bytes, and 1,000 is the limit"
        in only(make.zip({"a.txt": "x" * 2000}), max_bytes=1000)["a.txt"]
    )
    nested = make.zip({"a.txt": "x"})
    for _ in range(4):
        nested = make.zip({"n.zip": nested})
    assert only(nested) == {"n.zip!n.zip!n.zip": "it is a zip inside 3 zips, and 3 in all is the limit"}
    wide = make.zip({f"{n}.zip": make.zip({"a.txt": "x", "b.txt": "y"}) for n in range(4)})
    assert "more than 8 entries" in only(wide, zip_entries=8)["2.zip"]
    slip = only(make.zip({"../up.txt": "x", "/root.txt": "x", "C:\\win.txt": "x", "a\\..\\..\\b.txt": "x"}))
    assert set(slip.values()) == {"its name leads out of the zip"} and len(slip) == 4
    assert "there is no file in it" in only(make.zip({}))[""]
    lying = bytearray(make.zip({"a.txt": "0" * 5000}))
    at = lying.index(b"PK\x01\x02")
    lying[at + 24 : at + 28] = (10).to_bytes(4, "little")  # the central directory says 10 bytes
    assert only(bytes(lying))["a.txt"] is not None
    flagged = bytearray(make.zip({"a.txt": "secret"}))
    for magic, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        flagged[flagged.index(magic) + offset] |= 1
    assert "it is encrypted" in only(bytes(flagged))["a.txt"]
    bad_docx = make.zip({"word/document.xml": "0" * 5_000_000})
    assert "part 'word/document.xml': it unpacks to" in refused("bomb.docx", bad_docx)


def test_sizes_are_bounded_and_named(make, tmp_path):
    limits = FileLimits(seconds=10, max_chars=100, max_bytes=10_000, max_pages=2)
    cases = {
        "long.txt": (b"x" * 101, "101 characters, and 100 is the limit"),
        "long.html": (b"<p>" + b"x" * 101, "more than 100 characters"),
        "big.txt": (b"x" * 10_001, "10,001 bytes, and 10,000 is the limit of a file"),
        "pages.pdf": (make.pdf(["a"], ["b"], ["c"]), "3 pages, and 2 is the limit"),
        "cuad.json": ((CUAD % ("T", "x" * 101)).encode(), "101 characters, and 100 is the limit"),
    }
    with FileReader(limits) as reader:
        for name, (content, words) in cases.items():
            (tmp_path / name).write_bytes(content)
            (reading,) = reader.read(tmp_path / name)
            assert words in reading.failure, name


def test_what_the_disk_refuses_is_marked_as_passing(tmp_path, reader):
    (reading,) = reader.read(tmp_path / "nowhere.txt")
    assert reading.passing and "it cannot be read (No such file" in reading.failure


# A worker that does what a parser under attack may do, by the name of the file.
HOSTILE = """
import os, sys, time
from corpora.files import worker
served, replies = [], os.dup(1)
def read(path, inside, limits):
    name = os.path.basename(path)
    if name.startswith("sleep"): time.sleep(60)
    if name.startswith("spin"):
        while True: pass
    if name.startswith("crash"): os.abort()
    if name.startswith("eat"):
        kept = []
        while True: kept.append(bytearray(10_000_000))
    if name.startswith("babble"): print("noise on standard output"); sys.stderr.write("noise")
    if name.startswith("deep"): yield from read(path, inside, limits)
    if name.startswith("leave"): sys.exit(7)
    if name.startswith("tired"):
        if served: raise MemoryError
    served.append(name)
    if name.startswith("flood"):
        while True: os.write(replies, b"x" * 1_000_000)
    yield {"document": {"text": "fine", "places": [[0, None, 1]], "notes": []}}
worker._replies = read
worker.main()
"""


@pytest.fixture
def hostile(monkeypatch, tmp_path):
    """Paths whose reading goes wrong in the way of their name, and a reader of them with small limits."""
    real = subprocess.Popen

    def start(command, **options):
        return real([sys.executable, "-P", "-c", HOSTILE], **options)

    monkeypatch.setattr(child.subprocess, "Popen", start)
    with FileReader(FileLimits(seconds=1.0, memory_mb=100, max_chars=1000, max_paragraphs=1000)) as reader:
        yield lambda name: list(reader.read(tmp_path / name))[0], reader


def test_no_file_takes_the_reader_with_it(hostile):
    read, reader = hostile
    for name, words in (
        ("fine", None),
        ("babble", None),
        ("crash", "lost over it (SIGABRT)"),
        ("fine again", None),
        ("leave", "lost over it (exit code 7)"),
        ("sleep", "takes more than 1 s"),
        ("deep", "nested too deeply"),
        ("flood", ""),
        ("fine at last", None),
    ):
        began = time.monotonic()
        reading = read(name)
        assert time.monotonic() - began < 30
        assert (reading.failure is None) == (words is None) and (words or "") in (reading.failure or ""), name
        assert (reading.text == "fine") == (words is None)


@pytest.mark.skipif(sys.platform != "linux", reason="memory and CPU time are bounded by the kernel, on Linux")
def test_memory_and_cpu_time_are_bounded_by_the_kernel(hostile, monkeypatch):
    read, reader = hostile
    assert read("fine").failure is None and reader._worker.n_files == 1
    assert "takes more than 100 MB of memory" in read("eat").failure
    assert not reader._worker.alive and read("fine").failure is None
    # Without the parent's clock the kernel still ends it.
    monkeypatch.setattr(Worker, "_next", lambda self, seconds, real=Worker._next: real(self, 60.0))
    began = time.monotonic()
    assert "takes more than 1 s" in read("spin").failure and time.monotonic() - began < 40


def write_cuad(path, *texts):
    entries = [{"title": str(n), "paragraphs": [{"context": text, "qas": []}]} for n, text in enumerate(texts, 1)]
    path.write_text(json.dumps({"data": entries}))
    return path


def test_what_a_used_worker_has_no_memory_for_a_fresh_one_tries(hostile):
    read, reader = hostile
    before = (read("fine"), reader._worker)[1]
    assert read("tired").failure is None and reader._worker is not before and not before.alive


def test_the_callers_own_time_is_not_the_files(monkeypatch, tmp_path):
    path = write_cuad(tmp_path / "c.json", *["x" * 200_000] * 6)
    left, real = [], Worker._next
    monkeypatch.setattr(Worker, "_next", lambda self, seconds: (left.append(seconds), real(self, seconds))[1])
    with FileReader(FileLimits(seconds=30.0)) as reader:
        readings = reader.read(path)
        for _ in range(6):
            assert next(readings).failure is None
            time.sleep(0.2)
        assert list(readings) == []
    before_first_reply, *others = left[1:]
    assert before_first_reply == 30.0 and others[0] - others[-1] < 0.6


def test_a_reading_that_is_broken_off_leaves_no_answer_behind(tmp_path):
    path = write_cuad(tmp_path / "c.json", "a", "b")
    (tmp_path / "a.txt").write_text("whole")
    with FileReader() as reader:
        broken_off = reader.read(path)
        assert next(broken_off).title == "1"
        broken_off.close()
        assert [one.text for one in reader.read(tmp_path / "a.txt")] == ["whole"]


def test_a_worker_is_replaced_after_some_files_and_ended_at_the_end(monkeypatch, tmp_path):
    from corpora.files import reader as reader_module

    monkeypatch.setattr(reader_module, "_FILES_A_WORKER", 2)
    (tmp_path / "a.txt").write_text("a")
    threads = threading.active_count()
    with FileReader() as reader:
        pids = [(list(reader.read(tmp_path / "a.txt")), reader._worker._process.pid)[1] for _ in range(3)]
        scratch = reader._scratch.name
    assert pids[0] == pids[1] != pids[2] and reader._worker is None
    assert threading.active_count() == threads and not os.path.exists(scratch)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


PARENT = """
import sys
from corpora.files.reader import FileReader
reader = FileReader()
print(reader._ready()._process.pid, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc whether a process is still there")
def test_a_worker_whose_parent_is_gone_ends():
    env = os.environ | {"PYTHONPATH": str(child._ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    parent = subprocess.Popen([sys.executable, "-c", PARENT], env=env, **pipes)
    status = Path(f"/proc/{int(parent.stdout.readline())}/stat")
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 20
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the worker outlives its parent"
        time.sleep(0.05)


def test_a_worker_that_cannot_start_is_an_error_and_no_failure_of_the_file(monkeypatch, tmp_path):
    real = subprocess.Popen
    broken = [sys.executable, "-c", "raise ImportError('no module named pypdf')"]
    monkeypatch.setattr(child.subprocess, "Popen", lambda command, **options: real(broken, **options))
    with FileReader() as reader, pytest.raises(CorpusError, match="cannot be started .*no module named pypdf"):
        list(reader.read(tmp_path / "a.txt"))


def test_nothing_is_imported_from_the_folder_one_stands_in(monkeypatch, tmp_path, make):
    for name in ("docx.py", "json.py", "pypdf.py"):
        (tmp_path / name).write_text("raise SystemExit('taken over')")
    (tmp_path / "a.txt").write_text("text")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PYTHONPATH", raising=False)
    with FileReader() as reader:
        assert [one.text for one in reader.read(tmp_path / "a.txt")] == ["text"]


def test_folders_are_walked_in_order_without_hidden_files(tmp_path):
    for name in ("b/2.txt", "b/.hidden.txt", ".git/x.txt", "a.txt", "b/1.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "loop").symlink_to(tmp_path)
    found = find_files([tmp_path, tmp_path / "b" / "1.txt", tmp_path / "b" / ".hidden.txt"])
    assert [one.relative for one in found] == ["a.txt", ".hidden.txt", "b/1.txt", "b/2.txt"]
    assert found[0] == Found(tmp_path / "a.txt", "a.txt")
    with pytest.raises(CorpusError, match="there is no .*nowhere; give files or folders"):
        find_files([tmp_path / "nowhere"])
    assert shown("a\udcff\n\x1b[2J“") == "a\\xff\\n\\x1b[2J“"


def test_a_zip_that_is_a_duplicate_name_trap_reads_the_first(make, read):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive, pytest.warns(UserWarning):
        archive.writestr("a.txt", "first")
        archive.writestr("a.txt", "second")
    assert sorted((one.text, one.failure) for one in read("d.zip", out.getvalue()) if one.text) == [("first", None)]
