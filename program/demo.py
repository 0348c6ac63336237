"""The demo: generated contracts of a house that the base has never seen, compiled and scored on unseen ones."""

from pathlib import Path

from corpora.cuad import write_cuad
from corpora.synthetic import write_corpus
from program.compile import CompileResult, compile
from program.config import CompileConfig

TRAIN_CONTRACTS = 40
TEST_CONTRACTS = 12


def run_demo(out: Path, *, house: str, seed: int, command: str = "") -> CompileResult:
    """`evergreen demo`: contracts to learn from and others to score on, of one house; replaces an older demo.

    The contracts stay in `<out>-contracts/`, to evaluate on or to compile again.
    """
    folder = out.with_name(f"{out.name}-contracts")
    folder.mkdir(parents=True, exist_ok=True)
    corpus, test = folder / "corpus.json", folder / "test.json"
    write_cuad(write_corpus([house], TRAIN_CONTRACTS, seed=2 * seed), corpus)
    write_cuad(write_corpus([house], TEST_CONTRACTS, seed=2 * seed + 1), test)
    config = CompileConfig(
        corpus=str(corpus), test_corpus=str(test), out=str(out), seed=seed,
        max_train_questions=500, max_val_questions=48, max_tokens=192,
    )  # fmt: skip
    return compile(config, overwrite=True, command=command)
