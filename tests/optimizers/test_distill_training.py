"""Self-distillation on the student's own answers: rollouts, teachers, and the traps of a library's trainer, closed."""

import json
from dataclasses import replace

import pytest
import torch

from optimizers.errors import TrainingError
from optimizers.local_lm import forget_engines, local_lm
from optimizers.local_lm.prompts import encode_prompt
from optimizers.local_lm.tiny import write_tiny_model
from optimizers.local_lm.training import distill_rollouts
from optimizers.local_lm.training.distill import answer_batch, answer_logits
from optimizers.local_lm.training.distill_rollouts import build_self_distill
from optimizers.local_lm.training.fit import fit
from optimizers.local_lm.training.settings import settings_from
from optimizers.local_lm.tuning.adapters import training

ROW = {"prompt": "Q", "teacher_prompt": "Q. The answer is abc. " + "abc " * 5}
QUIET = {
    "method": "sdft", "progress": False, "bf16": False, "batch_size": 4, "rank": 4, "learning_rate": 5e-3,
    "max_tokens": 12, "refresh": 2, "skip_tokens": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("distill") / "tiny", context_tokens=1024)


@pytest.fixture
def lm(tiny, tmp_path):
    yield local_lm(tiny, work_dir=tmp_path / "work", max_tokens=12)
    forget_engines()


def task(lm, rows, **kwargs):
    return lm.provider._task(lm.model, rows, None, {**QUIET, **kwargs})


def trainer_of(lm, model, tmp_path, rows=(ROW,) * 4, **kwargs):
    """The trainer as a training would build it over `rows`, in order, inside `training(...)`."""
    from datasets import Dataset

    told = task(lm, list(rows), **kwargs)
    columns = Dataset.from_list(list(told.rows.columns))
    arguments = {
        "output_dir": str(tmp_path), "use_cpu": True, "report_to": "none", "remove_unused_columns": False,
        "per_device_train_batch_size": 4,
    }  # fmt: skip
    return build_self_distill(lm.engine.weights, model, columns, list(range(len(rows))), None, told.settings, arguments)


@pytest.fixture
def incumbent(lm):
    """The LM with an adapter that says other things than the base."""
    rows = [{"prompt": "Q", "completion": "xyz"}] * 8
    told = {"rank": 4, "learning_rate": 2e-2, "progress": False, "bf16": False, "epochs": 3}
    return lm.finetune(rows, None, told).result()


@pytest.fixture
def within(incumbent, tmp_path):
    """`within(**kwargs)` is a trainer that starts from the incumbent's adapter, whose weights then are moved."""
    weights = incumbent.engine.weights
    parent = incumbent.engine.adapters_dir / incumbent.engine.adapter_of(incumbent.model)
    with training(weights, parent=parent) as model:

        def make(**kwargs):
            trainer = trainer_of(incumbent, model, tmp_path, **kwargs)
            before = {name: p.detach().clone() for name, p in trainer.trained.items()}
            with torch.no_grad():
                for p in trainer.trained.values():
                    p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)) / 2)
            return trainer, before

        yield make


def said_by(trainer):
    """Log probabilities of a fixed answer as the trainer's model gives them now."""
    batch = answer_batch([trainer.rows[0]["prompt_ids"]], [[5, 6, 7]], 0)
    with torch.no_grad():
        return answer_logits(trainer.model, batch).log_softmax(-1)


@pytest.mark.parametrize(
    ("divergence", "teacher"), [("forward_kl", "ema"), ("reverse_kl", "frozen"), ("jsd", "live"), ("sampled", "frozen")]
)
def test_the_student_comes_to_the_teacher_who_has_more_in_its_prompt(lm, divergence, teacher):
    rate = {"learning_rate": 2e-3} if divergence == "sampled" else {}
    job = lm.finetune([ROW] * 4, None, {**QUIET, "max_steps": 14, "divergence": divergence, "teacher": teacher, **rate})
    job.result()
    kl = [step["kl"] for step in job.log["history"]]
    assert sum(kl[-4:]) < 0.7 * sum(kl[:4])
    assert all(step["answer_tokens"] > 0 and step["teacher_s"] > 0 for step in job.log["history"])


def test_the_top_k_of_the_teacher_is_enough(lm):
    job = lm.finetune([ROW] * 4, None, {**QUIET, "max_steps": 8, "top_k": 8})
    job.result()
    kl = [step["kl"] for step in job.log["history"]]
    assert kl[-1] < 0.7 * kl[0]


def test_long_prompts_reach_teacher_and_student_whole(lm, monkeypatch):
    contract = "The law of Ohio governs. " + "x" * 700
    row = {"prompt": contract, "teacher_prompt": f"{contract} It says: Ohio."}
    asked, judged, decode, batch = [], [], distill_rollouts.decode, distill_rollouts.answer_batch

    def decoding(model, tokenizer, rows, *args):
        asked.extend(list(one.ids) for one in rows)
        return decode(model, tokenizer, rows, *args)

    def batching(prompts, *args):
        judged.extend(prompts)
        return batch(prompts, *args)

    monkeypatch.setattr(distill_rollouts, "decode", decoding)
    monkeypatch.setattr(distill_rollouts, "answer_batch", batching)
    lm.finetune([row], None, {**QUIET, "batch_size": 1, "max_steps": 1, "refresh": 1}).result()
    plain, taught = (
        encode_prompt(lm.engine.weights, [{"role": "user", "content": row[key]}])
        for key in ("prompt", "teacher_prompt")
    )
    assert len(plain) > 512
    assert asked == [plain] and judged == [taught, plain]


def test_rows_that_do_not_fit_are_refused_with_their_number(lm):
    long = {"prompt": "Q", "teacher_prompt": "Q" * 1010}
    with pytest.raises(TrainingError, match="2 of 3 training rows exceed 1024 tokens"):
        task(lm, [ROW, long, long])
    fits = {"prompt": "Q", "teacher_prompt": "Q" * 900}
    assert len(task(lm, [fits]).rows.columns) == 1
    with pytest.raises(TrainingError, match="1 of 2 training rows exceed 1024"):
        task(lm, [ROW, fits], max_tokens=200)  # the answer needs room too


def test_one_prompt_for_both_is_refused(lm):
    with pytest.raises(TrainingError, match="training row 1 has one prompt for teacher and student"):
        task(lm, [ROW, {"prompt": "Q", "teacher_prompt": "Q"}])


def test_a_frozen_teacher_is_the_incumbent_with_its_adapter_and_not_the_base(within, incumbent):
    trainer, before = within(teacher="frozen")
    moved = said_by(trainer)
    with trainer.as_teacher():
        taught = said_by(trainer)
    chat, text = [{"role": "user", "content": "Q"}], "xyz"
    ids = incumbent.engine.weights.tokenizer(text, add_special_tokens=False)["input_ids"]
    batch = answer_batch([trainer.rows[0]["prompt_ids"]], [ids], 0)
    with trainer.as_teacher():
        logps = answer_logits(trainer.model, batch).log_softmax(-1)
    own = logps[range(len(ids)), ids].sum().item()
    adapted, base = (incumbent.engine.score(chat, [text], model=name)[0] for name in (incumbent.model, None))
    assert own == pytest.approx(adapted, abs=1e-3) and abs(own - base) > 1
    assert not torch.allclose(taught, moved, atol=0.1)
    assert torch.equal(said_by(trainer), moved), "the student stands there again"
    assert all(torch.equal(trainer.teacher[name], value) for name, value in before.items())


def test_an_ema_teacher_starts_from_the_incumbent_and_moves_by_its_rate(within):
    trainer, before = within(teacher="ema", ema_rate=0.25)
    assert all(torch.equal(trainer.teacher[name], value) for name, value in before.items())
    assert any(value.abs().max() > 0 for name, value in before.items() if "lora_B" in name)
    trainer.move_teacher()
    for name, p in trainer.trained.items():
        assert torch.allclose(trainer.teacher[name], 0.75 * before[name] + 0.25 * p.detach(), atol=1e-6)


def test_a_frozen_teacher_does_not_move_and_a_live_one_is_the_student(within):
    trainer, before = within(teacher="frozen")
    trainer.move_teacher()
    assert all(torch.equal(trainer.teacher[name], value) for name, value in before.items())
    live, _ = within(teacher="live")
    assert live.teacher is None
    with live.as_teacher():
        assert torch.equal(said_by(live), said_by(live))


def test_the_student_comes_back_after_a_teacher_that_fails(within):
    trainer, _ = within(teacher="frozen")
    moved = said_by(trainer)
    with pytest.raises(RuntimeError, match="teacher"), trainer.as_teacher():
        raise RuntimeError("teacher")
    assert torch.equal(said_by(trainer), moved)


def test_answers_are_fresh_every_few_steps_and_of_the_student_as_it_is(lm, monkeypatch):
    seen, decode = [], distill_rollouts.decode

    def decoding(model, tokenizer, rows, *args):
        trained = [p for p in lm.engine.weights.tuning.module.parameters() if p.requires_grad]
        seen.append((len(rows), sum(p.abs().sum().item() for p in trained)))
        return decode(model, tokenizer, rows, *args)

    monkeypatch.setattr(distill_rollouts, "decode", decoding)
    job = lm.finetune([ROW] * 4, None, {**QUIET, "max_steps": 5, "refresh": 2, "rollout_batch": 4})
    job.result()
    assert [count for count, _ in seen] == [
        4,
        4,
        4,
        4,
        4,
    ]  # two windows of eight rows, in batches of four, and the rest
    assert seen[0][1] == seen[1][1] and len({weights for _, weights in seen}) == 3
    spent = [step["generation_s"] > 0 for step in job.log["history"]]
    assert spent == [True, False, True, False, True]


def test_answers_end_with_the_end_of_turn_unless_they_were_cut(within, monkeypatch):
    from optimizers.local_lm.serving.rows import Output

    trainer, _ = within(refresh=1)
    outputs = [Output([5], finish_reason="stop"), Output([5, 6], finish_reason="length")] * 2
    monkeypatch.setattr(trainer, "_say", lambda places: outputs)
    (end,) = {tuple(row["end_ids"]) for row in trainer.rows}
    assert len(end) == 1
    assert trainer._answers([0, 1]) == [([5, *end], False), ([5, 6], True)]
    monkeypatch.setattr(trainer, "_say", lambda places: [Output(error=ValueError("no memory"))] * len(places))
    trainer.said = {}
    with pytest.raises(TrainingError, match="row 0 failed: no memory"):
        trainer._answers([0])


def test_the_loss_is_over_what_comes_after_the_skipped_tokens(within):
    trainer, _ = within(teacher="frozen", skip_tokens=2)
    trainer.said = {0: ([5, 6, 7, 8], True), 1: ([9, 5, 6], True)}
    with torch.no_grad():
        loss, _ = trainer.loss_of(trainer.model, {"at": torch.tensor([0, 1])})
        after = []
        for row, (answer, _) in zip(trainer.rows, trainer.said.values(), strict=False):
            plain, taught = (answer_batch([row[name]], [answer], 0) for name in ("prompt_ids", "teacher_ids"))
            student = answer_logits(trainer.model, plain).log_softmax(-1)[2:]
            with trainer.as_teacher():
                teacher = answer_logits(trainer.model, taught).log_softmax(-1)[2:]
            after.append((teacher.exp() * (teacher - student)).sum(-1))
    assert [len(part) for part in after] == [2, 1]
    assert loss.item() == pytest.approx(torch.cat(after).mean().item(), rel=1e-4)


def test_skipped_tokens_are_not_learnt_from(lm):
    job = lm.finetune([ROW] * 4, None, {**QUIET, "max_steps": 2, "skip_tokens": 12 + 1})
    job.result()
    assert [step["kl"] for step in job.log["history"]] == [0.0, 0.0]
    batch = answer_batch([[1, 2]], [[3, 4, 5]], 0, skip=1)
    assert batch["predicts"][0].nonzero().flatten().tolist() == [2, 3]  # before 4 and 5, not before 3


def test_half_precision_does_not_mix_teacher_and_student(lm):
    """Autocast keeps its casts of parameters: the student must not be given the teacher's."""
    told = {**QUIET, "max_steps": 8, "teacher": "frozen"}
    for bf16 in (False, True):
        job = lm.finetune([ROW] * 4, None, {**told, "bf16": bf16})
        job.result()
        kl = [step["kl"] for step in job.log["history"]]
        assert kl[-1] < 0.7 * kl[0]


class KilledError(Exception):
    pass


@pytest.mark.parametrize("teacher", ["ema", "frozen"])
def test_a_killed_run_goes_on_to_the_very_same_weights(lm, teacher):
    told = {"max_steps": 7, "checkpoint_steps": 3, "teacher": teacher, "ema_rate": 0.5}
    straight, _ = fit(task(lm, [ROW] * 4, **told, resume=False))

    def kill(progress):
        if progress.step == 6:
            raise KilledError

    with pytest.raises(KilledError):
        fit(replace(task(lm, [ROW] * 4, **told), report=kill))
    (job,) = (path for path in (lm.engine.adapters_dir.parent / "jobs").iterdir() if path.is_dir())
    assert {path.name for path in job.glob("checkpoint-*")} == {"checkpoint-4"}  # where answers are fresh
    steps = []
    again, _ = fit(replace(task(lm, [ROW] * 4, **told), report=lambda progress: steps.append(progress.step)))
    assert steps == [5, 6, 7] and again == straight


def test_validation_ends_it_and_keeps_the_best(lm):
    scores = iter([0.4, 0.9, 0.5])
    told = {"max_steps": 4, "validate": lambda model: next(scores), "validate_steps": 1, "patience": 1}
    name, score = fit(task(lm, [ROW] * 4, **told))
    assert score == 0.9
    record = json.loads((lm.engine.adapters_dir / name / "training.json").read_text())
    assert len(record["history"]) == 2


@pytest.mark.parametrize("tuner", ["full", "bitfit", "prefix"])
def test_any_tuner_can_be_taught(lm, tuner):
    told = {key: value for key, value in QUIET.items() if key != "rank"}
    job = lm.finetune([ROW] * 4, None, {**told, "tuner": tuner, "max_steps": 4, "learning_rate": 1e-3})
    assert job.result().model != lm.model


@pytest.mark.parametrize(
    ("kwargs", "told"),
    [
        ({"teacher": "base"}, "teacher='base' is not known"),
        ({"divergence": "kl"}, "divergence='kl' is not known"),
        ({"ema_rate": 0.0}, "ema_rate=0.0 must be above 0"),
        ({"skip_tokens": -1}, "skip_tokens=-1 0 or more"),
        ({"refresh": 0}, "refresh=0 must be above 0"),
        ({"divergence": "jsd", "jsd_beta": 1.0}, "jsd_beta=1.0 must be between 0 and 1"),
        ({"top_k": 0}, "top_k=0 1 or more"),
        ({"val_share": 0.2}, "rows of 'sdft' hold no answers"),
        ({"order": "easy_to_hard"}, "rows of 'sdft' hold no answers"),
        ({"method": "distill", "divergence": "sampled"}, "divergence='sampled' is not known"),
    ],
)
def test_settings_out_of_range_are_refused(kwargs, told):
    with pytest.raises(TrainingError, match=told):
        settings_from({"method": "sdft", **kwargs})
