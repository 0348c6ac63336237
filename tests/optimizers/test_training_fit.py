"""The training loop: going on after a kill, validation, early stopping, errors that say what to do, estimates."""

import json
from dataclasses import replace

import pytest
import torch
from filelock import FileLock
from torch.nn.functional import cross_entropy
from trl import SFTTrainer

from optimizers.errors import TrainingError
from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.training import estimate as estimating
from optimizers.local_lm.training import objectives
from optimizers.local_lm.training.checkpoints import last_whole
from optimizers.local_lm.training.fit import fit
from optimizers.local_lm.training.search import search

ROWS = [{"prompt": f"Say {i % 5}", "completion": f"It is {i % 5}.", "group": f"c{i % 4}"} for i in range(24)]
PAIRS = [{"prompt": row["prompt"], "chosen": row["completion"], "rejected": "No."} for row in ROWS]
QUIET = {"progress": False, "bf16": False, "batch_size": 4, "rank": 4, "learning_rate": 3e-3}


def job_folders(lm):
    """What is left of jobs that have not ended; their locks are files."""
    return [path for path in (lm.engine.adapters_dir.parent / "jobs").iterdir() if path.is_dir()]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("fit") / "tiny", context_tokens=256)


@pytest.fixture
def lm(tiny, tmp_path):
    yield local_lm(tiny, work_dir=tmp_path / "work", max_tokens=16)
    forget_engines()


def task(lm, rows=ROWS, **kwargs):
    told = {**QUIET, **kwargs}
    if told.get("tuner", "lora") != "lora":
        told.pop("rank")
    return lm.provider._task(lm.model, rows, None, told)


def record(lm, name):
    return json.loads((lm.engine.adapters_dir / name / "training.json").read_text())


class KilledError(Exception):
    pass


def killer(at_step):
    def report(progress):
        if progress.step == at_step:
            raise KilledError

    return report


@pytest.mark.parametrize(
    ("method", "rows", "tuner"),
    [
        ("sft", ROWS, "lora"),
        ("dpo", PAIRS, "lora"),
        ("orpo", PAIRS, "lora"),
        ("sft", ROWS, "full"),
        ("sft", ROWS, "bitfit"),
    ],
)
def test_a_killed_run_goes_on_to_the_very_same_weights(lm, method, rows, tuner):
    told = {"method": method, "max_steps": 9, "checkpoint_steps": 3, "tuner": tuner}
    straight, _ = fit(task(lm, rows, **told, resume=False))
    steps = []
    with pytest.raises(KilledError):
        fit(replace(task(lm, rows, **told), report=killer(8)))
    (job,) = job_folders(lm)
    assert last_whole(job, 10**9).name == "checkpoint-6"
    again, _ = fit(replace(task(lm, rows, **told), report=lambda progress: steps.append(progress.step)))
    assert steps == [7, 8, 9]
    # An adapter's name is the hash of its weights: equal names, equal bytes.
    assert again == straight
    assert not job.exists()
    history = record(lm, again)["history"]
    assert [row["step"] for row in history] == list(range(1, 10))
    assert all(b["tokens"] > a["tokens"] for a, b in zip(history, history[1:], strict=False))


def test_a_checkpoint_cut_short_is_passed_over(lm):
    told = {"max_steps": 9, "checkpoint_steps": 3}
    straight, _ = fit(task(lm, **told, resume=False))
    with pytest.raises(KilledError):
        fit(replace(task(lm, **told), report=killer(8)))
    (job,) = job_folders(lm)
    newest = job / "checkpoint-6"
    (newest / "optimizer.pt").write_bytes((newest / "optimizer.pt").read_bytes()[:-7])
    assert last_whole(job, 10**9).name == "checkpoint-3"
    (job / "checkpoint-3" / "COMPLETE").unlink()
    assert last_whole(job, 10**9) is None
    assert fit(task(lm, **told))[0] == straight


def test_other_settings_are_another_job(lm):
    with pytest.raises(KilledError):
        fit(replace(task(lm, max_steps=6, checkpoint_steps=2), report=killer(5)))
    steps = []
    fit(replace(task(lm, max_steps=6, checkpoint_steps=2, seed=1), report=lambda p: steps.append(p.step)))
    assert steps[0] == 1


def test_two_processes_do_not_train_one_job(lm):
    same = task(lm, max_steps=2)
    fit(same)
    (lock,) = (lm.engine.adapters_dir.parent / "jobs").glob("*.lock")
    with FileLock(lock), pytest.raises(TrainingError, match="another process"):
        fit(same)


def test_a_loss_that_is_not_finite_names_step_rows_and_checkpoint(lm):
    with pytest.raises(TrainingError, match=r"not finite at step \d+ .*training rows \[.*\]; lower learning_rate"):
        fit(task(lm, max_steps=30, learning_rate=1e30))
    before = lm.engine.score([{"role": "user", "content": "x"}], ["y"])
    with pytest.raises(TrainingError, match=r"last whole checkpoint is .*checkpoint-4"):
        poisoned = task(lm, max_steps=12, checkpoint_steps=2)

        def poison(progress):
            if progress.step == 5:
                with torch.no_grad():
                    trained = [p for p in poisoned.weights.tuning.module.parameters() if p.requires_grad]
                    trained[0].fill_(float("nan"))

        fit(replace(poisoned, report=poison))
    assert lm.engine.score([{"role": "user", "content": "x"}], ["y"]) == before


def test_validation_loss_falls_and_no_group_is_on_both_sides(lm):
    scores = []
    name, score = fit(
        task(lm, ROWS * 2, val_share=0.25, epochs=3, keep="best"), lambda step, value: scores.append(value)
    )
    told = record(lm, name)
    assert told["validation_rows"] == 12 and told["rows"] == 36
    assert len(scores) == 3 and score == max(scores) and scores[-1] > scores[0]


def test_the_metric_of_a_program_stops_training_and_the_best_is_kept(lm):
    asked = []

    def validate(model):
        said = lm.copy(model=model, cache=False)("Say 1")  # the model serves while training waits
        asked.append((model, said))
        return [0.2, 0.8, 0.5, 0.4, 0.9][len(asked) - 1]

    name, score = fit(task(lm, epochs=5, validate=validate, patience=2))
    assert len(asked) == 4 and score == 0.8
    assert lm.engine.model_string(name) == asked[1][0]
    left = {path.name for path in lm.engine.adapters_dir.iterdir()}
    assert left == {name}, "candidates that lost are gone"


def test_keep_last_keeps_the_last(lm):
    models = []

    def validate(model):
        models.append(model)
        return -len(models)

    name, _ = fit(task(lm, epochs=2, validate=validate, keep="last"))
    assert lm.engine.model_string(name) == models[-1] and len(models) == 2


def test_a_job_can_be_cancelled_and_then_raises(lm):
    job = lm.finetune(ROWS * 10, None, {**QUIET, "epochs": 50, "rank": 4})
    while job.progress is None:
        job.thread.join(0.05)
    assert job.estimate.steps == 3000 and job.progress.steps == 3000 and job.progress.seconds_left > 0
    assert job.cancel()
    with pytest.raises(TrainingError, match="stopped at step"):
        job.result(timeout=60)
    assert job.status() == "cancelled" and not job.cancel()


def test_a_failed_job_raises_and_is_never_an_lm(lm):
    job = lm.finetune([{"prompt": "x"}], None, QUIET)
    with pytest.raises(TrainingError, match="training row 0 has keys"):
        job.result(timeout=60)
    assert job.status() == "failed"
    for kwargs, told in (
        ({"tuner": "lorra"}, "lorra"),
        ({"rnak": 3}, "rnak"),
        ({"method": "rlhf"}, "method='rlhf' is not known"),
    ):
        with pytest.raises(TrainingError, match=told):
            lm.finetune(ROWS, None, kwargs).result(timeout=60)


def test_an_adapter_goes_on_as_the_kind_it_is(lm):
    first = lm.finetune(ROWS, None, {**QUIET, "max_steps": 1, "rank": 2, "learning_rate": 1e-3}).result()
    on = lm.provider._task(first.model, ROWS, None, {"progress": False})
    assert on.parent == lm.engine.adapter_of(first.model) and on.tuner.rank == 2
    with pytest.raises(TrainingError, match="bitfit"):
        first.finetune(ROWS, None, {"progress": False, "tuner": "bitfit", "max_steps": 1}).result()


@pytest.mark.parametrize("method", ["dpo", "orpo", "cpo"])
def test_preferences_move_the_model_to_the_chosen(lm, method):
    def margin(model):
        chat = [{"role": "user", "content": "Say 1"}]
        chosen, rejected = lm.engine.score(chat, ["It is 1.", "No."], model=model)
        return chosen - rejected

    tuned = lm.finetune(PAIRS, None, {**QUIET, "method": method, "epochs": 2, "learning_rate": 5e-3}).result()
    assert margin(tuned.model) > margin(None) + 1


def test_ratings_move_good_answers_above_bad_ones(lm):
    rows = [{"prompt": row["prompt"], "completion": row["completion"], "label": True} for row in ROWS]
    rows += [{"prompt": row["prompt"], "completion": "No.", "label": False} for row in ROWS]
    tuned = lm.finetune(rows, None, {**QUIET, "method": "kto", "epochs": 2, "learning_rate": 5e-3}).result()
    chat = [{"role": "user", "content": "Say 1"}]
    before, after = (lm.engine.score(chat, ["It is 1.", "No."], model=model) for model in (None, tuned.model))
    assert after[0] - after[1] > before[0] - before[1] + 0.5


@pytest.mark.parametrize("top_k", [None, 8])
def test_distillation_brings_the_student_to_the_teacher_who_has_more_in_its_prompt(lm, top_k):
    row = {"prompt": "Q", "completion": "abc", "teacher_prompt": "Q. The answer is abc. " + "abc " * 5}
    told = {**QUIET, "method": "distill", "max_steps": 25, "learning_rate": 5e-3, "top_k": top_k}
    job = lm.finetune([row] * 4, None, told)
    job.result()
    losses = [step["loss"] for step in job.log["history"]]
    assert losses[-1] < 0.25 * losses[0]


def test_easy_rows_first_by_the_starting_models_loss(lm):
    rows = [{"prompt": "x", "completion": "\x00ÿ" * 9}, {"prompt": "x", "completion": "the"}] * 3
    name, _ = fit(task(lm, rows, order="easy_to_hard", epochs=1, batch_size=1))
    assert record(lm, name)["history"][0]["step"] == 1


def test_search_tries_and_takes_the_best(lm):
    job = lm.finetune(ROWS, None, {**QUIET, "val_share": 0.25, "epochs": 2, "search": 3})
    job.result()
    tried = job.log["search"]
    assert len(tried) == 3
    best = max((row for row in tried if row["state"] == "complete"), key=lambda row: row["score"])
    assert job.log["settings"]["learning_rate"] == best["parameters"]["learning_rate"]
    assert job.log["tuner"]["options"]["rank"] == best["parameters"]["rank"]
    assert len(list(lm.engine.adapters_dir.iterdir())) == 1, "trials leave nothing behind"


def test_a_trial_that_is_cut_leaves_nothing_behind(lm):
    class CutError(Exception):
        pass

    def cut(step, score):
        raise CutError

    with pytest.raises(CutError):
        fit(task(lm, val_share=0.25, epochs=2), cut)
    assert not list(lm.engine.adapters_dir.iterdir())
    assert not job_folders(lm)


def test_search_without_a_finished_trial_says_so(lm, monkeypatch):
    import optuna

    def prune(*args):
        raise optuna.TrialPruned

    monkeypatch.setattr("optimizers.local_lm.training.search.fit", prune)
    with pytest.raises(TrainingError, match="none of 2 trials"):
        search(task(lm, val_share=0.25, search=2))


def test_the_estimate_counts_what_training_then_does(lm):
    told = lm.provider.dry_run(lm.model, ROWS, {**QUIET, "epochs": 2})
    job = lm.finetune(ROWS, None, {**QUIET, "epochs": 2})
    job.result()
    assert told.steps == len(job.log["history"]) == 12
    assert told.tokens == job.log["history"][-1]["tokens"]
    assert told.trainable_parameters == job.log["trainable_parameters"]
    assert told.rows == 24 and told.bytes_needed > 0 and told.seconds > 0
    assert "12 steps" in str(told)


def test_what_does_not_fit_is_refused_with_the_number_and_what_would(lm, monkeypatch):
    needed = lm.provider.dry_run(lm.model, ROWS, QUIET).bytes_needed
    monkeypatch.setattr(estimating, "bytes_free", lambda weights: int(needed * 0.7))
    with pytest.raises(TrainingError, match=r"needs about .* GiB .* batch_size=2 with gradient_accumulation_steps=2"):
        lm.finetune(ROWS, None, QUIET).result()
    monkeypatch.setattr(estimating, "bytes_free", lambda weights: 10)
    with pytest.raises(TrainingError, match="not even batch_size=1"):
        lm.finetune(ROWS, None, QUIET).result()


@pytest.mark.parametrize("tuner", ["lora", "prompt"])
def test_logits_are_made_where_a_label_is_and_the_loss_stays_the_same(lm, monkeypatch, tuner):
    asked = {"max_steps": 3, "tuner": tuner, "gradient_accumulation_steps": 2, "val_share": 0.3, "resume": False}
    widths = []
    monkeypatch.setattr(
        objectives, "cross_entropy", lambda *a, **k: widths.append(a[0].shape[0]) or cross_entropy(*a, **k)
    )
    name, score = fit(task(lm, **asked))
    monkeypatch.setattr(objectives, "_LabelledSFT", SFTTrainer)
    plain_name, plain_score = fit(task(lm, **asked))
    losses, plain = ([row["loss"] for row in record(lm, which)["history"]] for which in (name, plain_name))
    assert losses == pytest.approx(plain, abs=2e-4) and score == pytest.approx(plain_score, abs=2e-4)
    n_labels = max(len(row["completion"]) + 1 for row in ROWS)  # a byte a token, and the end of the turn
    if tuner == "prompt":  # its virtual tokens move every position: TRL's own loss
        assert widths == []
    else:
        assert len(widths) >= 6 and max(widths) <= 4 * (n_labels + 2)


def test_a_candidate_that_an_earlier_job_made_too_is_not_deleted(lm):
    def kept(*scores):
        told = iter(scores)
        return fit(task(lm, max_steps=4, validate_steps=2, validate=lambda model: next(told)))[0]

    last, first = kept(0.1, 0.9), kept(0.9, 0.1)
    assert first != last
    assert {path.name for path in lm.engine.adapters_dir.iterdir()} == {first, last}


def test_what_a_trainer_refuses_is_a_training_error(lm):
    with pytest.raises(TrainingError, match="'sft' with tuner 'peft:TRAINABLE_TOKENS' is refused.*lm_head"):
        fit(task(lm, tuner="peft:TRAINABLE_TOKENS", config={"token_indices": [5]}))
