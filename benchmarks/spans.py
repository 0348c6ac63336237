"""CUAD's own metric of spans found without a language model: sentences of retrieved passages by their cosine.

    python -m benchmarks.spans --corpus CUADv1.json                        # fitted on 20 contracts, 60 held-out ones
    python -m benchmarks.spans --corpus CUADv1.json --embedder tuned/embedder --max-chars 1000 --k 4 --bf16

`--context passage` reads sentences in their passages, as an embedder trained with the loss "lists" has learnt to,
`--context best` whichever way does better on the validation contracts. Fusion, absence and confidences are fitted on
validation contracts, which are not scored; all questions count, answered or not. Precision at 1 is the share of gold
characters in the best span of each answered question. Intervals are 95%, from a bootstrap over contracts.
"""

import argparse
import tempfile
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from benchmarks.retrieval import split
from corpora.cuad import read_cuad
from corpora.splits import sample_contracts
from modules.embedder import load_embedder
from modules.extract import Extract
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import Retrieve
from modules.retriever import PassageIndex
from program.cuad_metric import aupr, precision_at_recall, threshold_counts
from program.examples import to_examples
from program.intervals import Interval, mean_interval, ratio_interval
from program.metrics import cuad_matches
from program.report import interval_text
from program.retrieval_fit import answered, extraction, fit_answers, fit_extraction, fit_fusion
from program.retrieval_metric import character_scores

WAYS = {"alone": (False,), "passage": (True,), "best": (False, True)}


def print_line(name: str, found: Interval) -> None:
    """Percent with its interval."""
    print(f"{name:44}{interval_text(asdict(found))}", flush=True)


def over_thresholds(metric: Callable, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """`metric` of counts whose thresholds and kinds are laid out in one axis."""
    return lambda sums: metric(np.reshape(sums, (*np.shape(sums)[:-1], *shape)))


def main() -> None:
    """Read the arguments, fit, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a CUADv1-format file")
    parser.add_argument("--fit", type=int, default=20, metavar="N", help="validation contracts to fit on")
    parser.add_argument("--max-contracts", type=int, help="of the test contracts")
    parser.add_argument("--k", type=int, default=8, help="passages a question")
    parser.add_argument("--max-chars", type=int, default=600)
    parser.add_argument("--embedder", help="a folder or a hub id; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--context", choices=WAYS, default="alone", help="how a sentence is read")
    parser.add_argument("--work", type=Path, help="a folder for the index: a second run with it takes it")
    parser.add_argument("--bf16", action="store_true", help="embed in bfloat16: faster, cosines within .005")
    args = parser.parse_args()
    parts = split(read_cuad(args.corpus))
    val = sample_contracts(parts.val, args.fit, seed=0)
    test = sample_contracts(parts.test, args.max_contracts, seed=0) if args.max_contracts else parts.test
    with tempfile.TemporaryDirectory() as scratch, torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        index = PassageIndex.build(
            val.contracts + test.contracts,
            folder=args.work or scratch, embedder=load_embedder(args.embedder), max_chars=args.max_chars,
        )  # fmt: skip
        known, asked = to_examples(val), to_examples(test)
        settings, _ = fit_fusion(index, answered(known), RetrievalSettings(k=args.k, opening=False))
        retrieve = Retrieve(index, settings=replace(settings, answers=fit_answers(index, known)))
        settings, score = fit_extraction(retrieve, known, WAYS[args.context])
        print(f"fitted on {len(val.contracts)} contracts, AUPR {100 * score:.1f} there: {settings.spans}, ", end="")
        print("in passages" if settings.sentences_in_context else "alone", flush=True)
        extract = Extract(Retrieve(index, settings=settings))
        found = [extract(question=e.question, contract_id=e.contract_id) for e in tqdm(asked, desc="extracting")]
        index.close()
    contracts = [example.contract_id for example in asked]
    extractions = [extraction(example, one.spans, one.confidences) for example, one in zip(asked, found, strict=True)]
    print(f"{len(asked)} questions, {len(set(contracts))} contracts")
    counts = threshold_counts(extractions)
    for name, metric in (("AUPR", aupr), ("P@80R", precision_at_recall)):
        flat = counts.reshape(len(counts), -1)
        print_line(name, ratio_interval(flat, contracts, over_thresholds(metric, counts.shape[1:])))
    first, keys = [], []
    for example, one, query in ((e, f, q) for e, f in zip(asked, found, strict=True) for q in answered([e])):
        best = one.spans[:1]
        places = [(span.quote.contract_id, span.quote) for span in best]
        precision = character_scores([(query.contract_id, span) for span in query.gold], places)[0] if best else 0.0
        first.append(precision)
        keys.append(example.contract_id)
    print_line("precision at 1, in characters", mean_interval(first, keys))
    among = [cuad_matches([t for t, _ in e.predicted], e.gold, e.parties).any(axis=0) for e in extractions if e.gold]
    print(f"{'gold spans among the 20 best':44}{100 * np.concatenate(among).mean():5.1f}")


if __name__ == "__main__":
    main()
