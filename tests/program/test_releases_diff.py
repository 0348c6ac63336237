import json

import pytest
import typer
from huggingface_hub import ModelCard
from typer.testing import CliRunner

from program.releases import ReleaseError, ReleaseStore
from program.releases.commands import releases_app
from program.releases.diff import diff, render
from tests.program.releases_fakes import write_run

BEFORE = {"c1-Parties": ("Acme", 0.0), "c1-Law": ("Ohio", 1.0), "c2-Parties": ("Bolt", 1.0), "c2-Law": ("x", 0.0)}
AFTER = {"c1-Parties": ("gold", 1.0), "c1-Law": ("Utah", 0.0), "c2-Parties": ("Bolt", 1.0), "c2-Law": ("y", 0.0)}


def _two(tmp_path):
    """Two releases: c1's parties turned right, its law wrong, c2's law changed and wrong still; one question is new."""
    store = ReleaseStore.open(tmp_path / "releases")
    one = store.add(write_run(tmp_path / "one", 1, answers=BEFORE))
    two = store.add(write_run(tmp_path / "two", 2, answers=AFTER | {"c3-Law": ("gold", 1.0)}), parents=[one.id])
    return store, one, two


def test_a_diff_says_what_changed_in_prompts_config_weights_scores_and_answers(tmp_path):
    _, one, two = _two(tmp_path)
    found = diff(one.path, two.path)
    assert "-Answer the question from the passages of a contract. Number 1." in found.prompts["reviewer.predict"]
    assert '+ "answer": "2"' in found.prompts["reviewer.predict"]
    assert found.config == {"seed": (1, 2)}
    assert found.weights == {"adapter of reviewer.predict": ("sft-1", "sft-2")}
    by_category = {row.category: row for row in found.categories}
    parties, law = by_category["Parties"], by_category["Law"]
    assert (parties.n, parties.before, parties.after, parties.difference) == (2, 0.5, 1.0, 0.5)
    assert parties.low <= parties.difference <= parties.high
    assert law.difference == -0.5 and (found.n_shared, found.n_other) == (4, 1)
    exact = next(row for row in found.scores if row["score"] == "exact_match")
    assert (exact["difference"], exact["n"]) == (0.0, 4)
    assert [before["question_id"] for before, _ in found.answers] == ["c1-Parties", "c1-Law", "c2-Law"]
    text = render(found)
    assert "seed: 1 -> 2" in text and "right now: Parties, c1" in text and "WRONG NOW: Law, c1" in text
    assert "4 questions put to both (1 more were put to one alone)" in text


def test_a_question_with_another_right_answer_is_another_question(tmp_path):
    store, one, _ = _two(tmp_path)
    run = write_run(tmp_path / "three", 3, answers=AFTER)
    rows = (run / "scores.jsonl").read_text()
    (run / "scores.jsonl").write_text(rows.replace('"gold_answer": "gold"', '"gold_answer": "silver"'))
    found = diff(one.path, store.add(run).path)
    assert (found.n_shared, found.categories, found.answers, found.scores) == (0, (), (), ())
    assert "none to compare" in render(found)


def test_a_failed_call_is_no_answer_that_turned_wrong(tmp_path):
    store, one, _ = _two(tmp_path)
    run = write_run(tmp_path / "three", 3, answers=BEFORE)
    rows = [json.loads(line) for line in (run / "scores.jsonl").read_text().splitlines()]
    failed = next(row for row in rows if row["stage"] != "base" and row["question_id"] == "c1-Law")
    failed |= {"answer": "", "error": "timed out", "exact_match": None, "token_f1": None}
    (run / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = diff(one.path, store.add(run).path)
    assert found.answers == () and {row.category: row.n for row in found.categories} == {"Law": 1, "Parties": 2}


def test_the_same_release_has_no_differences(tmp_path):
    _, one, _ = _two(tmp_path)
    found = diff(one.path, one.path)
    assert not (found.prompts or found.config or found.weights or found.answers)
    assert {row["difference"] for row in found.scores} == {0.0}


@pytest.mark.parametrize(
    ("lm", "base"), [("evergreen-base", None), ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B"), ("/models/mine", None)]
)
def test_the_cards_are_what_the_hub_reads_and_name_no_folder_of_this_machine(tmp_path, lm, base):
    run = write_run(tmp_path / "run", 1)
    (run / "config.json").write_text((run / "config.json").read_text().replace("evergreen-base", lm))
    release = ReleaseStore.open(tmp_path / "releases").add(run, lineage={"feedback": {"ids": ["f1"]}}, decision="d7")
    model, data = ((release.path / name).read_text() for name in ("MODEL_CARD.md", "DATA_CARD.md"))
    header = ModelCard(model).data
    assert (header.library_name, header.base_model, header.license) == ("peft", base, None)
    assert {"dspy", "evergreen"} <= set(header.tags) and "/models" not in model + data
    assert (release.path / "program/adapters/sft-1/README.md").read_text() == model
    for said in ("51.0 [50.0, 90.0]", "d7", "Number 1.", "sft-1", release.id):
        assert said in model
    assert ModelCard(data).data.tags and '{"ids": ["f1"]}' in data and "word for word" in data


def test_the_commands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "one", 1, answers=BEFORE)
    write_run(tmp_path / "two", 2, answers=AFTER)
    app = typer.Typer()
    app.add_typer(releases_app, name="releases")

    def said(*command):
        done = CliRunner().invoke(app, ["releases", *command], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert "no releases in releases" in said("list")
    first = said("add", "one").split()[0]
    second = said("add", "two", "--parent", "0001").split()[0]
    assert CliRunner().invoke(app, ["releases", "promote", "0001"]).exit_code == 2  # no reason
    assert f"{first} is live" in said("promote", "0001", "--reason", "first")
    said("promote", "0002", "--reason", "gain +2")
    listed = said("list").splitlines()
    assert [line.split()[0] for line in listed] == [first, second] and "live" in listed[1] and "live" not in listed[0]
    assert f"promote {first} -> {second}: gain +2" in said("show")
    assert "seed: 1 -> 2" in said("diff", "0001")
    assert said("rollback", "--reason", "worse").split()[0] == first
    assert "removed none" in said("collect")
    path = tmp_path / "releases" / second / "scores.jsonl"
    path.chmod(0o644)
    path.write_text("")
    with pytest.raises(ReleaseError, match="1 of these releases are broken"):
        said("verify")
    assert "whole" in said("verify", first)
