"""Distillation on the student's own answers (SDFT): it answers, the teacher says what it would have said at each token.

TRL's experimental SDFTTrainer is not used. Its prompts, the teacher's too, are cut from the left to 512 tokens unless
told otherwise, which loses the contract; with an adapter its "base" teacher is the adapter switched off, so the raw
base and not the weights that came in; its "ema" teacher starts from zeroed A and B. The last two are in how it keeps
weights, and no setting mends them. It also answers by plain `generate`, where rollouts here go through the engine's
batches over a shared prefix, and it rewrites the last user turn alone, where a DSPy demonstration is turns of its own.

Here the teacher is a set of values for the parameters in training: those they start with ("frozen"), these moved after
every step ("ema"), or none of its own ("live"). They stand in the network while the teacher is asked.

Does not handle: several answers of one prompt within a step (more epochs give more answers), validation loss.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Trainer, TrainerCallback, TrainingArguments

from optimizers.errors import TrainingError
from optimizers.local_lm.serving.decoding import decode
from optimizers.local_lm.serving.prefixes import PREFIX_BYTES, PrefixStore, supports_prefix
from optimizers.local_lm.serving.rows import Output, Row
from optimizers.local_lm.training.distill import answer_batch, answer_logits
from optimizers.local_lm.training.labelled import keeps_logits
from optimizers.local_lm.training.losses import divergence, sampled_divergence, with_rest
from optimizers.local_lm.training.order import rows_a_step
from optimizers.local_lm.training.own import CountingTrainer, pad_id
from optimizers.local_lm.training.settings import SelfDistillSettings
from optimizers.local_lm.tuning.adapters import serving_trained
from optimizers.local_lm.weights import Weights

TEACHER_FILE = "teacher.safetensors"
Ids = dict[str, Any]


class SelfDistillTrainer(CountingTrainer):
    """Every `refresh` steps fresh answers of the student as it is, then its divergence from the teacher on them.

    `rows` are those of the plan, in its order; a batch names places in it. `teacher` holds the teacher's values by
    parameter name, None where it is the student. What is logged of a step: `kl` (nats per token, KL(teacher ||
    student); of "sampled" the estimate of the other direction), `generation_s`, `teacher_s`, and of its answers the
    mean number of tokens and the share cut off at `max_tokens`.
    """

    told: ClassVar[tuple[str, ...]] = ("kl", "generation_s", "teacher_s", "answer_tokens", "truncated")

    def __init__(self, *args: Any, weights: Weights, rows: list[Ids], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weights, self.rows, self.keeps = weights, rows, keeps_logits(weights, self.model)
        self.trained = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        live = self.settings.teacher == "live"
        # Nothing is trained yet: these are the incumbent's own values, its adapter's among them.
        self.teacher = None if live else {name: p.detach().clone() for name, p in self.trained.items()}
        self.said: dict[int, tuple[list[int], bool]] = {}
        self.seen: list[dict[str, float]] = []  # of the step's batches, until they are logged
        self.generation_s = 0.0

    def loss_of(
        self, model: Any, batch: dict[str, Tensor], n_tokens: Tensor | None = None
    ) -> tuple[Tensor, dict[str, float]]:
        """Divergence over the tokens of the student's own answers, without the first `skip_tokens` of each."""
        settings, places = self.settings, batch["at"].tolist()
        answers, cut = zip(*self._answers(places), strict=True)
        labels_N = torch.tensor([token for answer in answers for token in answer[settings.skip_tokens :]])
        began = time.perf_counter()
        with self.as_teacher():
            teacher_N_V = self._logps(self.model, "teacher_ids", places, answers)
        teacher_s = time.perf_counter() - began
        student_N_V = self._logps(model, "prompt_ids", places, answers)
        if labels_N.numel():
            loss, metrics = self._divergence(teacher_N_V, student_N_V, labels_N.to(student_N_V.device)[:, None])
        else:  # every answer is shorter than what is skipped; still on the graph, for the backward pass
            loss, metrics = student_N_V.sum(), {"kl": 0.0}
        tokens = sum(map(len, answers)) / len(answers)
        self.seen.append({**metrics, "teacher_s": teacher_s, "answer_tokens": tokens, "truncated": sum(cut) / len(cut)})
        return loss, metrics

    def _divergence(self, teacher_N_V: Tensor, student_N_V: Tensor, labels_N_1: Tensor) -> tuple[Tensor, dict]:
        settings = self.settings
        if settings.divergence == "sampled":
            return sampled_divergence(*(logps.gather(-1, labels_N_1)[:, 0] for logps in (teacher_N_V, student_N_V)))
        if settings.top_k is not None and settings.top_k < teacher_N_V.shape[-1]:
            tokens = teacher_N_V.topk(settings.top_k, dim=-1).indices
            teacher_N_V, student_N_V = with_rest(teacher_N_V, tokens), with_rest(student_N_V, tokens)
        return divergence(teacher_N_V, student_N_V, kind=settings.divergence, jsd_beta=settings.jsd_beta)

    def _logps(self, model: Any, prompt: str, places: list[int], answers: tuple[list[int], ...]) -> Tensor:
        prompts = [self.rows[at][prompt] for at in places]
        batch = answer_batch(prompts, answers, pad_id(self.weights), self.settings.skip_tokens)
        logits_N_V = answer_logits(model, {k: v.to(self.weights.device) for k, v in batch.items()}, self.keeps)
        return (logits_N_V.float() / self.settings.temperature).log_softmax(-1)

    # -- the student's answers

    def _answers(self, places: list[int]) -> list[tuple[list[int], bool]]:
        if not all(at in self.said for at in places):
            self._roll_out(places[0])
        return [self.said[at] for at in places]

    def _roll_out(self, first: int) -> None:
        """Answers of the student as it is to the rows from `first` to the end of their window of `refresh` steps.

        Windows begin at multiples of `refresh`, wherever a run was killed and goes on.
        """
        settings, began = self.settings, time.perf_counter()
        window = rows_a_step(settings) * settings.refresh
        places = range(first, min((first // window + 1) * window, len(self.rows)))
        self.said = {}
        for start in range(0, len(places), settings.rollout_batch):
            part = places[start : start + settings.rollout_batch]
            for at, output in zip(part, self._say(part), strict=True):
                if output.error is not None:
                    raise TrainingError(f"the student's answer to row {at} failed: {output.error}") from output.error
                ended = output.finish_reason == "stop"
                self.said[at] = (output.ids + (self.rows[at]["end_ids"] if ended else []), not ended)
        self.generation_s += time.perf_counter() - began

    def _say(self, places: range) -> list[Output]:
        settings, weights = self.settings, self.weights
        rows = [
            Row(
                ids=tuple(self.rows[at]["prompt_ids"]),
                max_tokens=settings.max_tokens,
                temperature=settings.rollout_temperature,
                seed=hash((settings.seed, at)) & (2**62 - 1),
            )
            for at in places
        ]
        limit = PREFIX_BYTES.get(weights.device.type, PREFIX_BYTES["cpu"])
        store = PrefixStore(limit) if supports_prefix(weights.model) else None  # of these weights, for this once
        with serving_trained(weights) as served:
            return decode(served.model, weights.tokenizer, rows, weights.stop_ids, store, None, served.opening)

    # -- the teacher

    @contextmanager
    def as_teacher(self) -> Iterator[None]:
        """While it lasts the teacher's values stand in the network, without gradients or dropout."""
        was_training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad(), _standing(self.trained, self.teacher or {}):
                yield
        finally:
            self.model.train(was_training)

    @torch.no_grad()
    def move_teacher(self) -> None:
        """After an optimizer step: the "ema" teacher goes `ema_rate` of the way to the student."""
        if self.settings.teacher == "ema":
            for name, p in self.trained.items():
                self.teacher[name].lerp_(p.detach(), self.settings.ema_rate)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.settings.teacher == "ema":
            folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            save_file({name: p.contiguous().cpu() for name, p in self.teacher.items()}, folder / TEACHER_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.settings.teacher == "ema":
            for name, value in load_file(Path(resume_from_checkpoint) / TEACHER_FILE).items():
                self.teacher[name].copy_(value)

    # -- what is logged

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As the Trainer's, with the means over the step's batches and the seconds of its rollouts."""
        if "loss" in logs:
            steps = self.seen or [{}]
            means = {name: sum(one[name] for one in steps) / len(steps) for name in steps[0]}
            means["teacher_s"] = round(sum(one.get("teacher_s", 0.0) for one in steps), 4)
            self.last_metrics = {**means, "generation_s": round(self.generation_s, 4)}
            self.seen, self.generation_s = [], 0.0
        super().log(logs, start_time)

    def floating_point_ops(self, inputs: dict) -> int:
        """Not counted: a batch holds places, not tokens."""
        return 0


@contextmanager
def _standing(trained: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> Iterator[None]:
    """`values` in the places of the parameters' own, by pointer; then these again."""
    own = {name: trained[name].data for name in values}
    for name, value in values.items():
        trained[name].data = value
    try:
        yield
    finally:
        for name, value in own.items():
            trained[name].data = value


class _MoveTeacher(TrainerCallback):
    trainer: SelfDistillTrainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.move_teacher()


def build_self_distill(
    weights: Weights, model: Any, rows: Dataset, plan: list[int], eval_rows: Dataset | None,
    settings: SelfDistillSettings, arguments: dict[str, Any],
) -> Trainer:  # fmt: skip
    """The trainer of "sdft". Checkpoints fall on steps that begin with fresh answers: going on gives the same ones."""
    every = -(-settings.checkpoint_steps // settings.refresh) * settings.refresh
    follow = _MoveTeacher()
    trainer = SelfDistillTrainer(
        model=model,
        args=TrainingArguments(**{**arguments, "save_steps": every}),
        data_collator=lambda batch: {"at": torch.tensor([row["at"] for row in batch])},
        train_dataset=Dataset.from_dict({"at": list(range(len(plan)))}),
        settings=settings,
        weights=weights,
        rows=rows.select(plan).to_list(),
        callbacks=[follow],
    )
    follow.trainer = trainer
    return trainer
