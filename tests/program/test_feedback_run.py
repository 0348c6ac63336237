import pytest

from corpora.types import Contract
from program.cli import main
from program.feedback.run import manage
from program.feedback.store import FeedbackError, FeedbackStore
from program.feedback.types import Said


@pytest.fixture
def store(tmp_path):
    """A store in which Ada rated one answer and Bob another."""
    path = tmp_path / "feedback.db"
    with FeedbackStore.open(path) as opened:
        for name in ("Ada", "Bob"):
            answered = opened.answer(opened.ask("Which law?", Contract("c", "Ohio law.")), Said("Ohio", True))
            opened.rate(answered.id, thumbs="up", by=name)
    return path


def test_what_a_store_holds_is_told_written_and_taken_in_once(store, tmp_path):
    assert manage(store) == ["2 answers; 2 rating; 2 people"]
    out = tmp_path / "all.json"
    assert manage(store, export=out)[0] == f"written: {out}" and out.is_file()
    other = tmp_path / "other.db"
    assert manage(other, take=out) == [
        "taken in: 6 new, 0 here already, 0 withdrawn here",
        "2 answers; 2 rating; 2 people",
    ]
    assert manage(other, take=out)[0] == "taken in: 0 new, 6 here already, 0 withdrawn here"


def test_a_person_withdraws_what_was_said_and_the_export_is_without_it(store, tmp_path):
    assert manage(store, withdraw="ada", export=tmp_path / "all.csv") == [
        "withdrawn: 1 events",
        f"written: {tmp_path / 'all.csv'}",
        "2 answers; 1 rating; 1 people",
    ]
    assert len((tmp_path / "all.csv").read_text(encoding="utf-8-sig").splitlines()) == 2
    with pytest.raises(FeedbackError, match="nothing that this person has said"):
        manage(store, withdraw="Grace")


def test_the_command_makes_no_store(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["evergreen", "feedback", str(tmp_path / "none.db")])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2 and "there is no file" in capsys.readouterr().err
    assert not (tmp_path / "none.db").exists()
