"""Train `evergreen-base` from scratch, on generated contracts only: `python -m program.base_model.train`.

Seeded and resumable: rows of a block depend on the seed and the block's number alone, and a checkpoint holds model,
both optimizers and the step. Matrices move by Muon, the rest by AdamW; constant rate, then linear decay to zero, then
once more from a lower rate (a warm restart: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5, with linear decay).
"""

import argparse
import json
import os
import queue
import threading
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase, Qwen3Config, Qwen3ForCausalLM

from corpora.synthetic import house_names
from program.base_model import rows
from program.base_model.packing import DECISION_WEIGHT, Batch, pack, tree_mask
from program.base_model.tokenizer import VOCABULARY_SIZE, train_tokenizer

# Never seen in pre-training: what closes the gap to them is compiling, and nothing else.
HELD_BACK = ("greyfriars", "juniper", "lindqvist")
STEPS_A_BLOCK = 40
SHEETS_A_BLOCK = 30
SETTLED = 0.55  # from this share of a cycle on: whole reviews of many passages, few drills


@dataclass(frozen=True, slots=True)
class PretrainConfig:
    """Steps of the two cycles; widths and rates were chosen on the first thousand steps (benchmarks/LOG.md).

    In the second cycle the words that say "none" weigh as much as copied ones: after the first the model said "not in
    this contract" too readily (85% right where there was an answer, 96% where there was none).
    """

    first_cycle: int = 5800
    second_cycle: int = 3600
    seed: int = 0
    rows_a_step: int = 6
    tokens_a_row: int = 768
    layers: int = 4
    width: int = 256
    muon_rate: float = 0.02
    adamw_rate: float = 3e-3
    decay_share: float = 0.75
    restart_rate: float = 0.3  # of the full rates: where the second cycle starts
    absent_decision_weight: float = 1.0  # in the second cycle
    warmup_steps: int = 60
    long_share: float = 0.2  # of a cycle, at its end: half the rows, twice as long, with demonstrations

    @property
    def steps(self) -> int:
        """Steps of both cycles."""
        return self.first_cycle + self.second_cycle


def known_houses() -> tuple[str, ...]:
    """The houses that the base is trained on."""
    return tuple(name for name in house_names() if name not in HELD_BACK)


def drill_share(progress: float) -> float:
    """Share of copying drills: most at first, some to the end."""
    return 0.85 if progress < 0.12 else 0.3 if progress < SETTLED else 0.1


def passages_shown(progress: float) -> tuple[int, ...]:
    """How many passages a review may show besides the opening, to draw from: few while copying is being learnt."""
    return (1, 2, 2, 3, 4) if progress < SETTLED else (2, 3, 4, 4, 4)


def cycle_progress(config: PretrainConfig, step: int) -> float:
    """Share of the cycle of `step` that is done; the second starts where reviews are settled."""
    if step < config.first_cycle:
        return step / config.first_cycle
    return SETTLED + (1 - SETTLED) * (step - config.first_cycle) / config.second_cycle


def block_batches(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, block: int) -> list[Batch]:
    """The batches of steps `block * STEPS_A_BLOCK` and on; a function of its arguments alone."""
    rng = Random(f"{config.seed}/block/{block}")
    houses = known_houses()
    sheets = [rows.draw_sheet(houses, rng) for _ in range(SHEETS_A_BLOCK)]
    batches = []
    for step in range(block * STEPS_A_BLOCK, (block + 1) * STEPS_A_BLOCK):
        progress = cycle_progress(config, step)
        long = progress >= 1 - config.long_share
        n_rows, n_tokens = (
            (config.rows_a_step // 2, config.tokens_a_row * 2) if long else (config.rows_a_step, config.tokens_a_row)
        )
        trees, drawn = [], 0
        while drawn < n_rows * n_tokens * 1.3:
            tree = _draw_tree(tokenizer, sheets, rng, progress, config.tokens_a_row, n_tokens if long else None)
            if tree is not None and tree.branches:
                trees.append(tree)
                drawn += len(tree)
        absent_weight = DECISION_WEIGHT if step < config.first_cycle else config.absent_decision_weight
        batches.append(pack(trees, n_rows, n_tokens, absent_decision_weight=absent_weight))
    return batches


def _draw_tree(
    tokenizer, sheets, rng: Random, progress: float, n_tokens: int, long_tokens: int | None
) -> rows.Tree | None:
    sheet, other = rng.sample(sheets, 2)
    drills = drill_share(progress)
    # A drill is about a third as long as the rest, and the share is one of tokens.
    if rng.random() < 3 * drills / (1 + 2 * drills):
        return rows.drill_tree(tokenizer, sheet, other, rng, max_tokens=n_tokens)
    k_passages = rng.choice(passages_shown(progress))
    kind = rng.random()
    if kind < 0.20:
        return rows.write_tree(tokenizer, sheet, rng, max_tokens=n_tokens)
    if kind < 0.40:
        return rows.compare_tree(tokenizer, sheet, other, rng, max_tokens=rng.choice((384, 512, n_tokens)))
    if long_tokens and rng.random() < 0.35:
        house = sheet.contract.id.split("-")[0]
        alike = [s for s in sheets if s is not sheet and s.contract.id.split("-")[0] == house]
        demo = rng.choice(alike) if alike else other
        return rows.review_tree(tokenizer, sheet, rng, max_tokens=long_tokens, k=k_passages, demo=demo)
    return rows.review_tree(tokenizer, sheet, rng, max_tokens=rng.choice((640, n_tokens)), k=k_passages)


def prefetch(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase, step: int) -> Iterator[Batch]:
    """Batches from `step` on, one block made ahead in a thread."""
    blocks: queue.Queue = queue.Queue(maxsize=1)

    def produce() -> None:
        for block in range(step // STEPS_A_BLOCK, (config.steps - 1) // STEPS_A_BLOCK + 1):
            try:
                blocks.put(block_batches(config, tokenizer, block))
            except Exception as error:  # handed to the training thread, which raises it
                blocks.put(error)
                return

    threading.Thread(target=produce, daemon=True).start()
    skip = step % STEPS_A_BLOCK
    while step < config.steps:
        batches = blocks.get()
        if isinstance(batches, Exception):
            raise batches
        yield from batches[skip : skip + config.steps - step]
        step, skip = step + len(batches) - skip, 0


def build_model(config: PretrainConfig, tokenizer: PreTrainedTokenizerBase) -> Qwen3ForCausalLM:
    """A stock Qwen3, small, with tied embeddings."""
    torch.manual_seed(config.seed)
    return Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY_SIZE,
            hidden_size=config.width,
            intermediate_size=3 * config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.width // 64,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=4096,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def build_optimizers(config: PretrainConfig, masters: dict[str, torch.nn.Parameter]) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for embeddings and norms."""
    matrices = [p for name, p in masters.items() if p.ndim == 2 and "embed" not in name]
    rest = [p for name, p in masters.items() if p.ndim != 2 or "embed" in name]
    return [
        torch.optim.Muon(matrices, lr=config.muon_rate, momentum=0.95, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=config.adamw_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate(config: PretrainConfig, step: int) -> float:
    """Share of the full learning rate at `step`."""
    if step < config.first_cycle:
        decay_steps = config.decay_share * config.first_cycle
        return min(1.0, (step + 1) / config.warmup_steps, (config.first_cycle - step) / decay_steps)
    done = step - config.first_cycle
    return config.restart_rate * min((done + 1) / config.warmup_steps, 1 - done / config.second_cycle)


def batch_loss(model: Qwen3ForCausalLM, body, batch: Batch) -> tuple[torch.Tensor, float]:
    """Weighted mean of token losses, and the plain mean over completion tokens. Logits are made where a weight is."""
    hidden = body(
        input_ids=batch.ids_B_T, position_ids=batch.positions_B_T, attention_mask=tree_mask(batch), use_cache=False
    ).last_hidden_state
    wanted = batch.weights_B_T > 0
    losses = cross_entropy(model.lm_head(hidden[wanted]).float(), batch.targets_B_T[wanted], reduction="none")
    weights = batch.weights_B_T[wanted]
    return (losses * weights).sum() / weights.sum(), losses[weights >= 1].mean().item()


def train(config: PretrainConfig, work: Path, out: Path, *, threads: int, until: int | None = None) -> None:
    """Run or resume; writes `out` (model, tokenizer, training log) at the end and checkpoints in `work`."""
    torch.set_num_threads(threads)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = load_or_train_tokenizer(config, work)
    model = build_model(config, tokenizer)
    # The model computes in bf16 throughout (1.5 times the speed of autocast here); the optimizers move float32 masters.
    masters = {name: torch.nn.Parameter(p.detach().clone()) for name, p in model.named_parameters()}
    model.to(torch.bfloat16)
    optimizers = build_optimizers(config, masters)
    step, log = _resume(work, masters, optimizers)
    _copy_weights(masters, model)
    body = torch.compile(model.model, dynamic=False)
    started, seen = time.time(), 0
    for batch in prefetch(config, tokenizer, step):
        for optimizer, full in zip(optimizers, (config.muon_rate, config.adamw_rate), strict=True):
            for group in optimizer.param_groups:
                group["lr"] = full * rate(config, step)
        loss, completion_loss = batch_loss(model, body, batch)
        if not torch.isfinite(loss):
            raise RuntimeError(f"loss is {loss.item()} at step {step}; resume from the checkpoint with a lower rate")
        loss.backward()
        for name, parameter in model.named_parameters():
            masters[name].grad, parameter.grad = parameter.grad.float(), None
        torch.nn.utils.clip_grad_norm_(masters.values(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
        _copy_weights(masters, model)
        step, seen = step + 1, seen + batch.ids_B_T.numel()
        if step % 20 == 0:
            row = {"step": step, "loss": round(loss.item(), 4), "completion_loss": round(completion_loss, 4)}
            row |= {"tokens_a_second": round(seen / (time.time() - started)), "rate": round(rate(config, step), 4)}
            log.append(row)
            print(json.dumps(row), flush=True)
        if step % 250 == 0 or step == config.steps or step == until:
            _checkpoint(work, masters, optimizers, step, log, config)
            export(config, model, tokenizer, out, log)
        if step == until:
            return


def load_or_train_tokenizer(config: PretrainConfig, work: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of this run, trained on known houses' contracts and kept in `work`."""
    from transformers import AutoTokenizer

    if (work / "tokenizer" / "tokenizer.json").is_file():
        return AutoTokenizer.from_pretrained(work / "tokenizer")
    rng = Random(f"{config.seed}/tokenizer")
    sheets = [rows.draw_sheet(known_houses(), rng) for _ in range(400)]
    texts = [passage.text for sheet in sheets for passage in sheet.passages]
    texts += [label.question.text for sheet in sheets[:8] for label in sheet.labels] * 2
    tokenizer = train_tokenizer(texts)
    tokenizer.save_pretrained(work / "tokenizer")
    return AutoTokenizer.from_pretrained(work / "tokenizer")


def export(config: PretrainConfig, model, tokenizer, out: Path, log: list[dict]) -> None:
    """The release: bf16 safetensors, tokenizer, config and training log."""
    out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
    (out / "training.json").write_text(
        json.dumps({"config": asdict(config), "held_back": HELD_BACK, "log": log[::5]}, indent=1) + "\n"
    )


def _copy_weights(masters: dict[str, torch.nn.Parameter], model: torch.nn.Module) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(masters[name])


def _checkpoint(
    work: Path, masters: dict, optimizers: list, step: int, log: list[dict], config: PretrainConfig
) -> None:
    state = {
        "masters": {name: p.data for name, p in masters.items()},
        "optimizers": [o.state_dict() for o in optimizers],
    }
    state |= {"step": step, "log": log, "config": asdict(config)}
    torch.save(state, work / "checkpoint.pt.new")
    os.replace(work / "checkpoint.pt.new", work / "checkpoint.pt")


def _resume(work: Path, masters: dict[str, torch.nn.Parameter], optimizers: list) -> tuple[int, list[dict]]:
    path = work / "checkpoint.pt"
    if not path.is_file():
        return 0, []
    state = torch.load(path, weights_only=True)
    for name, parameter in masters.items():
        parameter.data.copy_(state["masters"][name])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    print(f"resumed at step {state['step']}", flush=True)
    return state["step"], state["log"]


def main() -> None:
    """Command line of the training run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--first-cycle", type=int, default=PretrainConfig().first_cycle, help="steps")
    parser.add_argument("--second-cycle", type=int, default=PretrainConfig().second_cycle, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--layers", type=int, default=PretrainConfig().layers)
    parser.add_argument("--work", type=Path, default=Path("runs/evergreen-base"), help="checkpoints")
    parser.add_argument(
        "--out", type=Path, default=Path("optimizers/local_lm/evergreen-base"), help="the model folder written"
    )
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    args = parser.parse_args()
    cycles = {"first_cycle": args.first_cycle, "second_cycle": args.second_cycle}
    train(PretrainConfig(**cycles, seed=args.seed, layers=args.layers), args.work, args.out, threads=args.threads)


if __name__ == "__main__":
    main()
