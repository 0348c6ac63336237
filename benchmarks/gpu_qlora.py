"""QLoRA on a GPU, and serving on it: `python -m benchmarks.gpu_qlora`. Needs CUDA.

A randomly initialised Qwen3 of about four billion parameters (speed and memory do not depend on the values), rows of
2,048 tokens. Training: `lm.finetune` with NF4 weights against TRL's SFTTrainer at its defaults (bf16 weights, LoRA),
same rows, same steps, each in a process of its own. Serving: 64 threads against one by one, with the kept prefix and
without.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

SIZES = {"4b": dict(hidden=2560, layers=36, heads=32, kv_heads=8, inner=9728, vocabulary=151_936), "tiny": None}


def write_model(folder: Path, size: str) -> Path:
    """A random model with a byte tokenizer and a real model's vocabulary size, so that the head costs what it costs."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    from optimizers.local_lm.tiny import byte_tokenizer, write_tiny_model

    if SIZES[size] is None:
        return write_tiny_model(folder, context_tokens=4096)
    told = SIZES[size]
    tokenizer = byte_tokenizer()
    config = Qwen3Config(
        vocab_size=told["vocabulary"], hidden_size=told["hidden"], intermediate_size=told["inner"],
        num_hidden_layers=told["layers"], num_attention_heads=told["heads"], num_key_value_heads=told["kv_heads"],
        head_dim=128, max_position_embeddings=8192, tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    AutoModelForCausalLM.from_config(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def training_rows(n_rows: int, n_tokens: int) -> list[dict[str, str]]:
    """Rows of about `n_tokens` tokens (bytes, with the random model's tokenizer), an eighth of them the answer."""
    return [
        {"prompt": f"{i:03d} " + "clause " * (n_tokens // 8), "completion": "answer " * (n_tokens // 64)}
        for i in range(n_rows)
    ]


def train_ours(folder: Path, n_rows: int, n_tokens: int) -> dict:
    """`lm.finetune` on NF4 weights."""
    from optimizers.local_lm import local_lm

    with tempfile.TemporaryDirectory() as work:
        lm = local_lm(folder, quantize="nf4", work_dir=work)
        told = {"epochs": 1, "batch_size": 4, "progress": False, "learning_rate": 1e-4}
        job = lm.finetune(training_rows(n_rows, n_tokens), None, told)
        job.result()
        return _told(job.log["history"])


def train_plain(folder: Path, n_rows: int, n_tokens: int) -> dict:
    """TRL's SFTTrainer as its documentation starts: bf16 weights, LoRA, everything else at its default."""
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
    from trl import SFTConfig, SFTTrainer

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
    config = SFTConfig(
        output_dir=tempfile.mkdtemp(), num_train_epochs=1, per_device_train_batch_size=4, learning_rate=1e-4,
        max_length=None, logging_steps=1, report_to="none", save_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(
        model=model, args=config, train_dataset=Dataset.from_list(training_rows(n_rows, n_tokens)),
        processing_class=tokenizer, peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear"),
    )  # fmt: skip
    begun, history = time.perf_counter(), []

    class Clock(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            if logs and "loss" in logs:
                seconds = time.perf_counter() - begun
                history.append({"loss": logs["loss"], "tokens": int(logs["num_tokens"]), "seconds": seconds})

    trainer.add_callback(Clock())
    trainer.train()
    return _told(history)


def serve(folder: Path, threads: int, shared_tokens: int) -> dict:
    """Calls a second, one by one and from `threads` threads, with and without the kept prefix."""
    from optimizers.local_lm import local_lm

    speeds = {}
    with tempfile.TemporaryDirectory() as work:
        lm = local_lm(folder, work_dir=work, max_batch=64, max_tokens=64, cache=False)
        system = "clause " * (shared_tokens // 7)

        def ask(i: int) -> None:
            lm(messages=[{"role": "system", "content": system}, {"role": "user", "content": f"question {i}"}])

        store = lm.engine.dispatcher.prefixes
        for name, kept in (("prefix", store), ("no prefix", None)):
            lm.engine.dispatcher.prefixes = kept
            ask(0)
            begun = time.perf_counter()
            for i in range(8):
                ask(i)
            alone = 8 / (time.perf_counter() - begun)
            begun = time.perf_counter()
            with ThreadPoolExecutor(threads) as pool:
                list(pool.map(ask, range(4 * threads)))
            speeds[name] = {"one by one": alone, f"{threads} threads": 4 * threads / (time.perf_counter() - begun)}
    return speeds


def _told(history: list[dict]) -> dict:
    later = history[2:]
    speed = (later[-1]["tokens"] - later[0]["tokens"]) / (later[-1]["seconds"] - later[0]["seconds"])
    memory = torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else None
    return {"tokens_a_second": round(speed), "peak_gib": memory, "last_loss": history[-1]["loss"]}


def _in_child(what: str, args: argparse.Namespace, folder: Path) -> dict:
    command = [sys.executable, "-m", "benchmarks.gpu_qlora", "--child", what, "--folder", str(folder)]
    command += ["--rows", str(args.rows), "--tokens", str(args.tokens)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{what} failed:\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Run the three measurements and print them side by side."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="4b")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--child", choices=("ours", "plain"))
    parser.add_argument("--folder", type=Path)
    args = parser.parse_args()
    if args.child:
        run = train_ours if args.child == "ours" else train_plain
        print(json.dumps(run(args.folder, args.rows, args.tokens)))
        return
    if not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA GPU; torch sees none")
    with tempfile.TemporaryDirectory() as work:
        folder = write_model(Path(work) / "model", args.size)
        ours, plain = (_in_child(what, args, folder) for what in ("ours", "plain"))
        print(f"lm.finetune, NF4: {ours}\nSFTTrainer, defaults: {plain}")
        print(f"{ours['tokens_a_second'] / plain['tokens_a_second']:.2f} times the speed, "
              f"{ours['peak_gib'] / plain['peak_gib']:.2f} times the memory")  # fmt: skip
        print(json.dumps(serve(folder, args.threads, 500), indent=1))


if __name__ == "__main__":
    main()
