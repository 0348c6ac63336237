"""Every way of tuning on one task, side by side: `python -m benchmarks.tuners --steps 60 --rows 120`.

The task: answering from passages of a drafting house that the bundled model has never seen, the answer being among
them. Each tuner trains on the same rows, in the same order, for the same number of steps, at its default rate, in a
process of its own. On rows of other contracts, the loss is in nats per token of the right completion, the score the
exact match of the answer that greedy decoding gives. `--rates 0.3 1 3` tries multiples of the default rate.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
from random import Random

from optimizers.local_lm.tuning.tuners import TUNERS, default_rate, tuner_from

WARM_STEPS = 2
COLUMNS = "tuner rate trained share loss_before loss_after score_before score_after speed_over_lora peak_memory".split()


def main() -> None:
    """Read the arguments, run each tuner in a child process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="evergreen-base", help="bundled name, folder or hub id")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--validation-rows", type=int, default=48)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--tuners", nargs="+", default=list(TUNERS), help="words, 'peft:TYPE' among them")
    parser.add_argument("--rates", type=float, nargs="+", default=[1.0], help="multiples of the default rate")
    parser.add_argument("--child", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child is not None:
        print(json.dumps(measure(**args.child)))
        return
    words = ["lora", *(word for word in args.tuners if word != "lora")]  # first: the others' speed is told as its ratio
    print(f"{args.lm}: {args.steps} steps of {args.batch_size}, {args.rows} rows, {args.validation_rows} to validate\n")
    print(f"| {' | '.join(name.replace('_', ' ') for name in COLUMNS)} |")
    print("|---" + "|---:" * (len(COLUMNS) - 1) + "|")
    lora_speed = None
    for word in words:
        for factor in args.rates:
            task = {"lm": args.lm, "word": word, "factor": factor}
            task |= {"steps": args.steps, "batch_size": args.batch_size}
            found = in_child({**task, "n_rows": args.rows, "n_held_out": args.validation_rows})
            lora_speed = lora_speed or found["tokens_per_s"]
            cells = [word, f"{found['rate']:.1e}", f"{found['trained']:,}", f"{found['share']:.2%}"]
            cells += [f"{found[key]:.3f}" for key in ("loss_before", "loss_after")]
            cells += [f"{found[key]:.0%}" for key in ("score_before", "score_after")]
            cells += [f"{found['tokens_per_s'] / lora_speed:.2f}", f"{found['peak_mib']:.0f} MiB"]
            print(f"| {' | '.join(cells)} |", flush=True)


def in_child(task: dict) -> dict:
    """`measure` in a fresh process, so that peak memory is this tuner's alone."""
    command = [sys.executable, "-m", "benchmarks.tuners", "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task['word']} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(lm: str, word: str, factor: float, steps: int, batch_size: int, n_rows: int, n_held_out: int) -> dict:
    """Train with one tuner and report its size, losses, scores, speed and memory."""
    from optimizers.local_lm import local_lm

    train, held_out = review_rows(n_rows, seed=0), review_rows(n_held_out, seed=1)
    with tempfile.TemporaryDirectory() as scratch:
        model = local_lm(lm, work_dir=f"{scratch}/lm", quantize="nf4" if word == "qlora" else "none")
        before = {"loss_before": loss(model, held_out), "score_before": score(model, held_out)}
        rate = default_rate(tuner_from(word), model.engine.weights.hidden_size) * factor
        settings = {"max_steps": steps, "batch_size": batch_size, "learning_rate": rate, "progress": False}
        job = model.finetune(train, None, {"tuner": word, **settings})
        tuned = job.result()
        history = job.log["history"][min(WARM_STEPS, steps - 1) - 1 :]
        parameters = model.engine.weights.model.parameters()
        every = sum(p.numel() * (1 if p.is_floating_point() else 2) for p in parameters)  # two 4-bit weights to a byte
        return before | {
            "rate": rate,
            "trained": job.log["trainable_parameters"],
            "share": job.log["trainable_parameters"] / every,
            "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "loss_after": loss(tuned, held_out),
            "score_after": score(tuned, held_out),
            "tokens_per_s": (history[-1]["tokens"] - history[0]["tokens"])
            / max(1e-9, history[-1]["seconds"] - history[0]["seconds"]),
        }


def review_rows(n_rows: int, seed: int) -> list[dict[str, list[dict[str, str]]]]:
    """Whole conversations: prompt of the reviewer, and what it should have said."""
    import dspy

    from modules.signatures import ReviewPassages
    from program.base_model.rows import covered, draw_sheet, retrieve, review_example
    from program.base_model.train import HELD_BACK

    adapter, rng, made = dspy.ChatAdapter(), Random(f"tuners/{seed}"), []
    while len(made) < n_rows:
        sheet = draw_sheet(HELD_BACK[:1], rng)
        for index, label in enumerate(sheet.labels):
            passages = retrieve(sheet, index, 2, rng, force=1.0)
            if label.spans and covered(label, passages):
                example = review_example(sheet, label, passages)
                asked = {name: example[name] for name in ReviewPassages.input_fields}
                messages = adapter.format(ReviewPassages, [], asked)
                content = adapter.format_assistant_message_content(ReviewPassages, example)
                made.append({"messages": [*messages, {"role": "assistant", "content": content}]})
    return made[:n_rows]


def score(model, rows: list[dict]) -> float:
    """Share of the rows whose answer the model gives."""
    import dspy
    from dspy.lm15 import Config, Message, Request
    from dspy.utils.exceptions import AdapterParseError

    from modules.signatures import ReviewPassages
    from program.metrics import exact_match

    def answer(text: str) -> str:
        try:
            return dspy.ChatAdapter().parse(ReviewPassages, text)["answer"] or ""
        except AdapterParseError:
            return ""

    asked = []
    for row in rows:
        system, user, _ = row["messages"]
        config = Config(temperature=0.0, max_tokens=200)
        asked.append(Request(model.model, (Message.user(user["content"]),), system=system["content"], config=config))
    said = [each.result().message.text for each in list(map(model.engine.submit, asked))]
    gold = [row["messages"][-1]["content"] for row in rows]
    return sum(exact_match(answer(a), answer(b)) for a, b in zip(said, gold, strict=True)) / len(rows)


def loss(model, rows: list[dict]) -> float:
    """Mean negative log probability of the rows' completions, in nats per token."""
    from optimizers.local_lm.prompts import encode_completion

    total, tokens = 0.0, 0
    for row in rows:
        *chat, said = row["messages"]
        total -= model.engine.score(chat, [said["content"]], model.model)[0]
        tokens += len(encode_completion(model.engine.weights, chat, said["content"], with_end=False))
    return total / tokens


if __name__ == "__main__":
    main()
