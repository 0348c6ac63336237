"""A step of self-distillation against a step of supervised fine-tuning, on the same rows, in one run.

    python -m benchmarks.distill_throughput --rows 48 --refresh 4

A row is a review prompt of the generated corpus: SFT learns its gold answer; SDFT's student answers it, and a teacher
who has the gold answer in its prompt (`as_turns`, twice the tokens) judges every token. Prints both steps' seconds,
their ratio, and what share of the training's time the rollouts took. Best of `--rounds`; the first steps are left out.
"""

import argparse
import tempfile
from random import Random
from typing import Any

import dspy

from modules.signatures import ReviewPassages, join_quotes, number_passages
from optimizers.distill_demonstrations import as_turns
from optimizers.local_lm import local_lm
from program.base_model import rows
from program.base_model.train import HELD_BACK

WARM_STEPS = 2
MAX_TOKENS = 96


def paired_rows(n_rows: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The same prompts as rows of "sft" and of "sdft"."""
    rng, adapter = Random(0), dspy.ChatAdapter()
    supervised, distilled = [], []
    while len(supervised) < n_rows:
        sheet = rows.draw_sheet(HELD_BACK[:1], rng)
        for index, label in enumerate(sheet.labels):
            passages = rows.retrieve(sheet, index, 2, rng, force=1.0)
            if not label.spans or not rows.covered(label, passages):
                continue
            quotes, answer = rows.gold(sheet, label)
            asked = {"passages": number_passages([p.text for p in passages]), "question": label.question.text}
            prompt = adapter.format(ReviewPassages, [], asked)
            said = adapter.format_assistant_message_content(
                ReviewPassages, {"quotes": join_quotes(quotes), "answer": answer}
            )
            supervised.append({"messages": [*prompt, {"role": "assistant", "content": said}]})
            distilled.append({"prompt": prompt, "teacher_prompt": as_turns(prompt, said)})
    return supervised[:n_rows], distilled[:n_rows]


def step_seconds(lm: dspy.LM, given: list[dict[str, Any]], settings: dict[str, Any], warm: int) -> tuple[float, float]:
    """Seconds a step, and the share of them in generation, without the first `warm` steps."""
    job = lm.finetune(given, None, {**settings, "resume": False, "progress": False, "learning_rate": 1e-4})
    job.result()
    history = job.log["history"]
    before, counted = history[warm - 1], history[warm:]
    seconds = counted[-1]["seconds"] - before["seconds"]
    return seconds / len(counted), sum(one.get("generation_s", 0.0) for one in counted) / seconds


def main() -> None:
    """Print both and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--refresh", type=int, default=4, help="steps on one set of the student's answers (paper: 1)")
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    supervised, distilled = paired_rows(args.rows)
    warm = max(WARM_STEPS, args.refresh)  # whole windows are counted, each with its rollouts
    shared = {"epochs": 1, "batch_size": args.batch_size}
    with tempfile.TemporaryDirectory() as work:
        lm = local_lm("evergreen-base", work_dir=work, max_tokens=MAX_TOKENS)
        told = {**shared, "method": "sdft", "refresh": args.refresh, "max_tokens": MAX_TOKENS}
        pairs = [
            (step_seconds(lm, supervised, {**shared, "method": "sft"}, warm), step_seconds(lm, distilled, told, warm))
            for _ in range(args.rounds)
        ]
    (sft_s, _), (sdft_s, share) = (min(column) for column in zip(*pairs, strict=True))
    print(
        f"SFT {sft_s:.2f} s a step, SDFT {sdft_s:.2f} s a step: {sdft_s / sft_s:.2f} times (aim: at most 4); "
        f"{share:.0%} of SDFT's time in generation; {len(supervised)} rows, refresh {args.refresh}"
    )


if __name__ == "__main__":
    main()
