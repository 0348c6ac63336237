import errno
import hashlib
import os

import pytest

from program import runs
from program.provenance import data_record, version_record
from program.runs import ROW_KEYS, RunError, RunFolder, read_run


def _row(stage="base", question="q1"):
    return dict.fromkeys(ROW_KEYS) | {"stage": stage, "question_id": question, "answer": "U+2028:\u2028, é"}


def _complete(path, seed=0, **options):
    with RunFolder.start(path, **options) as run:
        run.write_json("config.json", {"seed": seed})
        run.append_scores("base", [_row()])
        return run.finish("complete")


def _no_space(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_reads_back(tmp_path):
    path = tmp_path / "deep" / "first"
    with RunFolder.start(path) as run:
        assert not path.exists()
        assert read_run(run.folder).status == "running"
        run.write_json("config.json", {"seed": 3})
        run.append_scores("base", [_row(), _row(question="q2")])
        run.append_scores("prompts", [_row("prompts")])
        (run.folder / "program" / "program.json").write_text("{}")
        assert run.finish("complete") == path
    found = read_run(path)
    assert (found.status, found.reason, found.config, found.summary) == ("complete", "", {"seed": 3}, {})
    assert [row["stage"] for row in found.rows] == ["base", "base", "prompts"]
    assert found.rows[0] == _row()
    assert (path / "program" / "program.json").exists()


def test_a_complete_run_is_refused_without_overwrite_and_kept_with_it(tmp_path):
    path = _complete(tmp_path / "r", seed=1)
    with pytest.raises(RunError, match="complete run"):
        RunFolder.start(path)
    _complete(path, seed=2, overwrite=True)
    _complete(path, seed=3, overwrite=True)
    assert read_run(path).config == {"seed": 3}
    assert read_run(tmp_path / "r.previous").config == {"seed": 2}


def test_a_folder_that_is_no_run_is_never_replaced(tmp_path):
    path = tmp_path / "thesis"
    path.mkdir()
    RunFolder.start(path).finish("partial")  # an empty folder may be used
    other = tmp_path / "other"
    other.mkdir()
    (other / "chapter.txt").write_text("dear")
    with pytest.raises(RunError, match="no run folder"):
        RunFolder.start(other, overwrite=True)
    run = RunFolder.start(tmp_path / "late")
    (tmp_path / "late").mkdir()
    (tmp_path / "late" / "chapter.txt").write_text("dear")
    with pytest.raises(RunError, match="no run folder"):
        run.finish("complete")
    assert (tmp_path / "late" / "chapter.txt").exists() and run.folder.exists()


def test_ctrl_c_leaves_a_partial_run_in_place(tmp_path):
    path = tmp_path / "r"
    with pytest.raises(KeyboardInterrupt), RunFolder.start(path) as run:
        run.append_scores("base", [_row()])
        raise KeyboardInterrupt
    assert (read_run(path).status, read_run(path).reason) == ("partial", "stopped with Ctrl-C")
    assert len(read_run(path).rows) == 1
    _complete(path, seed=5)  # an unfinished run may be replaced without overwrite
    assert read_run(path).config == {"seed": 5}


def test_ctrl_c_beside_a_complete_run_leaves_that_alone(tmp_path):
    path = _complete(tmp_path / "r", seed=1)
    with pytest.raises(KeyboardInterrupt), RunFolder.start(path, overwrite=True):
        raise KeyboardInterrupt
    assert read_run(path).status == "complete" and read_run(path).config == {"seed": 1}
    assert read_run(tmp_path / "r.partial").status == "partial"


def test_an_exception_marks_the_run_failed_with_its_reason(tmp_path):
    with pytest.raises(ZeroDivisionError), RunFolder.start(tmp_path / "r"):
        raise ZeroDivisionError("by nought")
    assert (read_run(tmp_path / "r").status, read_run(tmp_path / "r").reason) == (
        "failed",
        "ZeroDivisionError: by nought",
    )


def test_leaving_without_finish_is_not_complete(tmp_path):
    with RunFolder.start(tmp_path / "r"):
        pass
    assert read_run(tmp_path / "r").status == "partial"


def test_a_full_disk_leaves_the_earlier_run_whole(tmp_path, monkeypatch):
    path = _complete(tmp_path / "r", seed=1)
    with pytest.raises(RunError, match="untouched; the disk is full"), RunFolder.start(path, overwrite=True) as run:
        monkeypatch.setattr(os, "fsync", _no_space)
        run.write_json("config.json", {"seed": 2})
    monkeypatch.undo()
    assert read_run(path).status == "complete" and read_run(path).config == {"seed": 1}
    assert not list(tmp_path.rglob("*.tmp"))
    _complete(path, seed=3, overwrite=True)  # and what was left over does not stand in the way
    assert read_run(path).config == {"seed": 3}


def test_a_disk_filled_by_others_code_says_so_too(tmp_path):
    with pytest.raises(RunError, match="disk is full"), RunFolder.start(tmp_path / "r"):
        _no_space()
    assert read_run(tmp_path / "r").status == "failed"


def test_a_torn_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = runs.write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(os, "replace", _no_space)
    with pytest.raises(OSError):
        runs.write_text(path, "new")
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_a_second_writer_is_refused_and_a_killed_one_is_kept(tmp_path):
    path = tmp_path / "r"
    killed = RunFolder.start(path)
    killed.append_scores("base", [_row()])
    with pytest.raises(RunError, match="another process"):
        RunFolder.start(path)
    killed._lock.release()  # what the system does when a process dies
    RunFolder.start(path).finish("complete")
    assert read_run(tmp_path / "r.partial").status == "running" and len(read_run(tmp_path / "r.partial").rows) == 1


def test_scores_come_whole_and_once(tmp_path):
    with RunFolder.start(tmp_path / "r") as run:
        run.append_scores("base", [_row()])
        with pytest.raises(RunError, match="already"):
            run.append_scores("base", [_row(question="q2")])
        with pytest.raises(RunError, match="seconds"):
            run.append_scores("x", [{k: v for k, v in _row("x").items() if k != "seconds"}])
        with pytest.raises(RunError, match="stage"):
            run.append_scores("x", [_row("y")])
        with pytest.raises(ValueError):
            run.append_scores("x", [_row("x") | {"confidence": float("nan")}])
        assert len(read_run(run.folder).rows) == 1
        with pytest.raises(RunError, match="ends as"):
            run.finish("done")


def test_what_is_no_run_or_damaged_is_named(tmp_path):
    with pytest.raises(RunError, match="no run folder"):
        read_run(tmp_path / "none")
    path = _complete(tmp_path / "r")
    os.rename(path, tmp_path / "r.previous")  # a crash in the middle of the swap
    with pytest.raises(RunError, match=r"r\.previous"):
        read_run(path)
    (tmp_path / "r.previous" / "scores.jsonl").write_text('{"stage": "base"}\n{"sta')
    with pytest.raises(RunError, match="line 2"):
        read_run(tmp_path / "r.previous")


def test_provenance(tmp_path):
    file = tmp_path / "corpus.json"
    file.write_bytes(b"contracts")
    record = data_record({"corpus": file}, {"train": ["b", "a"], "test": ["c"]})
    assert record["files"]["corpus"] == {"sha256": hashlib.sha256(b"contracts").hexdigest(), "bytes": 9}
    assert record["splits"] == {"train": ["a", "b"], "test": ["c"]}
    with pytest.raises(RunError, match="'a' is in 'train' and 'test'"):
        data_record({}, {"train": ["a"], "test": ["a"]})
    versions = version_record("evergreen compile")
    assert versions["command"] == "evergreen compile" and "numpy" in versions["packages"] and "commit" in versions
