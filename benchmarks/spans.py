"""CUAD's own metric of spans found without a language model: sentences of retrieved passages by their cosine.

    python -m benchmarks.spans --corpus CUADv1.json                        # fitted on 20 contracts, 60 held-out ones
    python -m benchmarks.spans --corpus CUADv1.json --fit 3 --max-contracts 5 --bf16

Confidences are fitted on contracts that are not scored; all questions count, answered or not. The interval is 95%, from
a bootstrap over contracts.
"""

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.retrieval import RememberingEmbedder, read
from corpora.cuad import bare_question
from corpora.splits import sample_contracts
from corpora.types import Corpus, Label
from modules.embedder import load_embedder
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import Retrieve
from modules.retriever import PassageIndex
from modules.spans import ScoredSpan, SpanFinder, confidence, fit_confidence
from program.cuad_metric import Extraction, aupr, precision_at_recall, threshold_counts
from program.intervals import ratio_interval
from program.metrics import cuad_matches

Found = tuple[Label, tuple[str, ...], tuple[ScoredSpan, ...]]


def found_spans(corpus: Corpus, folder: Path, embedder: RememberingEmbedder, k: int) -> list[Found]:
    """Each label with its gold texts and the 20 best spans of the `k` best passages and the opening."""
    index = PassageIndex.build(corpus.contracts, folder=folder, embedder=embedder)
    program, finder = Retrieve(index, settings=RetrievalSettings(k=k)), SpanFinder(embedder)
    found = []
    for label in corpus.labels:
        question, key = label.question, label.question.contract_id
        gold = tuple(index.contract_text(key)[span.start : span.end] for span in label.spans)
        passages = program(question=question.text, contract_id=key).passages
        found.append((label, gold, finder.find(bare_question(question.text), passages)))
    index.close()
    return found


def fit(found: Sequence[Found]) -> tuple[float, float]:
    """Slope and offset of the confidence, from all spans found and whether each matches a gold one."""
    scores, right = [], []
    for label, gold, spans in found:
        texts = [span.quote.text for span in spans]
        scores += [span.score for span in spans]
        right += cuad_matches(texts, gold, "Parties" in label.question.id).any(axis=1).tolist()
    return fit_confidence(scores, right)


def main() -> None:
    """Read the arguments, fit, score, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a CUADv1-format file, of which some contracts are held out")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--fit", type=int, default=20, metavar="N", help="contracts to fit the confidence on")
    parser.add_argument("--max-contracts", type=int, help="of the test contracts")
    parser.add_argument("--k", type=int, default=8, help="passages a question")
    parser.add_argument("--embedder", help="a folder or a hub id; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--bf16", action="store_true", help="embed in bfloat16: about twice as fast")
    args = parser.parse_args()
    if not args.corpus and not (args.train and args.test):
        parser.error("give --corpus, or --train and --test")
    train, test = read(args)
    model = load_embedder(args.embedder)
    embedder = RememberingEmbedder(model.bfloat16() if args.bf16 else model)
    with tempfile.TemporaryDirectory() as scratch:
        some = sample_contracts(train, args.fit, seed=0)
        slope, offset = fit(found_spans(some, Path(scratch) / "train", embedder, args.k))
        found = found_spans(test, Path(scratch) / "test", embedder, args.k)
    extractions = [
        Extraction(
            gold,
            tuple((span.quote.text, confidence(span.score, slope, offset)) for span in spans),
            "Parties" in label.question.id,
        )
        for label, gold, spans in found
    ]
    counts = threshold_counts(extractions)
    contracts = [label.question.contract_id for label, _, _ in found]
    print(
        f"{len(found)} questions, {len(set(contracts))} contracts, confidence from {slope:.2f} x cosine {offset:+.2f}"
    )
    for name, metric in (("AUPR", aupr), ("P@80R", precision_at_recall)):
        shape = counts.shape[1:]
        interval = ratio_interval(
            counts.reshape(len(counts), -1),
            contracts,
            lambda sums: metric(np.reshape(sums, (*np.shape(sums)[:-1], *shape))),  # noqa: B023
        )
        print(f"{name:6} {100 * interval.mean:5.1f} [{100 * interval.low:.1f}, {100 * interval.high:.1f}]")
    ceiling = [cuad_matches([t for t, _ in e.predicted], e.gold, e.parties).any(axis=0) for e in extractions if e.gold]
    print(f"gold spans among the 20 best: {100 * np.concatenate(ceiling).mean():.1f}%")


if __name__ == "__main__":
    main()
