"""`lm.finetune` against a bare PyTorch loop on the same rows: `python -m benchmarks.training_throughput`.

Both train the same LoRA on the bundled base, over the same batches in the same order, padded alike, in bf16 autocast
where the CPU has it; the bare loop has no trainer, no checkpoint, no progress. They alternate, and the best of each
counts: other work on the machine only ever slows one down.
"""

import argparse
import tempfile
import time
from random import Random

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from corpora.synthetic import write_corpus
from optimizers.local_lm import local_lm
from optimizers.local_lm.training.objectives import PAD_MULTIPLE
from optimizers.local_lm.training.order import schedule
from optimizers.local_lm.training.rows import encode, n_tokens
from optimizers.local_lm.training.settings import settings_from
from optimizers.machine import cpu_has_bf16
from program.base_model.train import HELD_BACK

WARM_STEPS = 3


def training_rows(n_rows: int) -> list[dict[str, str]]:
    """Reviewing prompts and answers of a held-back house, as chats of plain text."""
    rng, given = Random(0), []
    corpus = write_corpus(HELD_BACK[:1], 12, seed=7)
    texts = {contract.id: contract.text for contract in corpus.contracts}
    for label in corpus.labels:
        if label.spans:
            span, text = rng.choice(label.spans), texts[label.question.contract_id]
            passage = text[max(0, span.start - 900) : span.end + 900]
            given.append({"prompt": f"{passage}\n\n{label.question.text}", "completion": text[span.start : span.end]})
    return given[:n_rows]


def with_finetune(lm, given: list[dict[str, str]], settings: dict) -> float:
    """Tokens a second of the training job, without its first steps."""
    job = lm.finetune(given, None, {**settings, "resume": False})
    job.result()
    history = job.log["history"][WARM_STEPS - 1 :]
    return (history[-1]["tokens"] - history[0]["tokens"]) / (history[-1]["seconds"] - history[0]["seconds"])


def with_bare_loop(lm, given: list[dict[str, str]], settings: dict) -> float:
    """The same steps by hand."""
    weights, resolved = lm.engine.weights, settings_from(settings)[0]
    encoded = encode(weights, given, resolved)
    plan, size = schedule(encoded, resolved), resolved.batch_size
    model = AutoModelForCausalLM.from_pretrained(weights.folder, dtype=torch.float32)
    model = get_peft_model(model, LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    tokens = 0
    for step, start in enumerate(range(0, len(plan), size)):
        if step == WARM_STEPS:
            tokens, begun = 0, time.perf_counter()
        batch = [encoded.columns[place] for place in plan[start : start + size]]
        width = -(-max(len(row["input_ids"]) for row in batch) // PAD_MULTIPLE) * PAD_MULTIPLE
        ids = torch.zeros(len(batch), width, dtype=torch.long)
        labels, seen = torch.full_like(ids, -100), torch.zeros_like(ids)
        for i, row in enumerate(batch):
            length = len(row["input_ids"])
            ids[i, :length], labels[i, :length] = torch.tensor(row["input_ids"]), torch.tensor(row["labels"])
            seen[i, :length] = 1
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=cpu_has_bf16()):
            loss = model(input_ids=ids, attention_mask=seen, labels=labels, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        tokens += sum(n_tokens(row) for row in batch)
    return tokens / (time.perf_counter() - begun)


def main() -> None:
    """Print both speeds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    given = training_rows(args.rows)
    settings = {"epochs": 1, "progress": False, "learning_rate": 1e-3}
    with tempfile.TemporaryDirectory() as work:
        lm = local_lm("evergreen-base", work_dir=work)
        speeds = [(with_finetune(lm, given, settings), with_bare_loop(lm, given, settings)) for _ in range(args.rounds)]
    ours, bare = (max(column) for column in zip(*speeds, strict=True))
    print(
        f"lm.finetune {ours:,.0f} tokens/s, bare loop {bare:,.0f} tokens/s: {ours / bare:.2f} times, {len(given)} rows"
    )


if __name__ == "__main__":
    main()
