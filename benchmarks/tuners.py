"""Every way of tuning on one task, side by side: `python -m benchmarks.tuners --steps 60 --rows 120`.

The task: quoting the span that answers a question, from passages of a drafting house that the bundled model has never
seen, under a prompt it has never seen. Each tuner trains on the same rows, in the same order, for the same number of
steps, at its default rate, in a process of its own; the loss is in nats per token of answers from other contracts.
`--rates 0.3 1 3` tries multiples of the default rate.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile

from benchmarks.training_throughput import training_rows
from optimizers.local_lm.tuning.tuners import TUNERS, default_rate, tuner_from

WARM_STEPS = 2


def main() -> None:
    """Read the arguments, run each tuner in a child process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lm", default="evergreen-base", help="bundled name, folder or hub id")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--validation-rows", type=int, default=24)
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
    print("| tuner | rate | trained | share | loss before | after | tokens/s over lora's | peak memory |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    lora_speed = None
    for word in words:
        for factor in args.rates:
            task = {"lm": args.lm, "word": word, "rate": default_rate(tuner_from(word)) * factor}
            task |= {"steps": args.steps, "batch_size": args.batch_size}
            found = in_child({**task, "n_rows": args.rows, "n_held_out": args.validation_rows})
            lora_speed = lora_speed or found["tokens_per_s"]
            print(
                f"| {word} | {task['rate']:.0e} | {found['trained']:,} | {found['share']:.2%} | {found['before']:.3f} "
                f"| {found['after']:.3f} | {found['tokens_per_s'] / lora_speed:.2f} | {found['peak_mib']:.0f} MiB |",
                flush=True,
            )


def in_child(task: dict) -> dict:
    """`measure` in a fresh process, so that peak memory is this tuner's alone."""
    command = [sys.executable, "-m", "benchmarks.tuners", "--child", json.dumps(task)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{task['word']} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(lm: str, word: str, rate: float, steps: int, batch_size: int, n_rows: int, n_held_out: int) -> dict:
    """Train with one tuner and report its size, losses, speed and memory."""
    from optimizers.local_lm import local_lm

    given = training_rows(10**6)
    if n_rows + n_held_out > len(given):
        raise ValueError(f"rows={n_rows} and {n_held_out} held out: the task has {len(given)}; take fewer")
    train, held_out = given[:n_rows], given[len(given) - n_held_out :]
    with tempfile.TemporaryDirectory() as scratch:
        model = local_lm(lm, work_dir=f"{scratch}/lm", quantize="nf4" if word == "qlora" else "none")
        before = loss(model, held_out)
        settings = {"max_steps": steps, "batch_size": batch_size, "learning_rate": rate, "progress": False}
        job = model.finetune(train, None, {"tuner": word, **settings})
        tuned = job.result()
        if isinstance(tuned, Exception):
            raise tuned
        history = job.log["history"][min(WARM_STEPS, steps - 1) - 1 :]
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        parameters = model.engine.weights.model.parameters()
        every = sum(p.numel() * (1 if p.is_floating_point() else 2) for p in parameters)  # two 4-bit weights to a byte
        return {
            "trained": job.log["trainable_parameters"],
            "share": job.log["trainable_parameters"] / every,
            "before": before,
            "after": loss(tuned, held_out),
            "tokens_per_s": (history[-1]["tokens"] - history[0]["tokens"])
            / max(1e-9, history[-1]["seconds"] - history[0]["seconds"]),
            "peak_mib": peak_kib / 1024,
        }


def loss(model, rows: list[dict[str, str]]) -> float:
    """Mean negative log probability of the rows' answers, in nats per token."""
    from optimizers.local_lm.prompts import encode_completion

    total, tokens = 0.0, 0
    for row in rows:
        chat = [{"role": "user", "content": row["prompt"]}]
        total -= model.engine.score(chat, [row["completion"]], model.model)[0]
        tokens += len(encode_completion(model.engine.weights, chat, row["completion"], with_end=False))
    return total / tokens


if __name__ == "__main__":
    main()
