"""Share of answered questions whose gold spans are all retrieved, by wording, ranking and with the opening or without.

    python -m benchmarks.retrieval_recall                       # 15 generated contracts a house, five houses
    python -m benchmarks.retrieval_recall --corpus CUADv1.json --max-contracts 30

One index, one run; only the query, the ranking and what is added to the k best passages differ.
"""

import argparse
import tempfile
from pathlib import Path

from corpora.cuad import bare_question, read_cuad
from corpora.synthetic import write_corpus
from corpora.types import Corpus, Label, Passage
from modules.embedder import load_embedder
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import rank
from modules.retriever import PassageIndex

HOUSES = ("ashgrove", "greyfriars", "juniper", "lindqvist", "marlowe")
K = (1, 2, 4, 8)


def holds(label: Label, passages: list[Passage]) -> bool:
    """Whether the passages together hold every gold span, read on over neighbouring passages."""
    covered = {i for p in passages for i in range(p.start, p.end)}
    return all(covered.issuperset(range(span.start, span.end)) for span in label.spans)


def recall_table(corpus: Corpus, index: PassageIndex) -> list[tuple[str, list[float]]]:
    """(variant, share at each k) rows."""
    answered = [label for label in corpus.labels if label.spans]
    table = []
    dense, words = RetrievalSettings(lexical_weight=0.0), RetrievalSettings(dense_weight=0.0)
    variants = (
        ("CUAD's question", str, dense),
        ("without its frame", bare_question, dense),
        ("the same, BM25", bare_question, words),
        ("the same, fused", bare_question, RetrievalSettings()),
        ("the same, by rank", bare_question, RetrievalSettings(fusion="rrf", lexical_weight=1.0)),
    )
    for wording, query, settings in variants:
        hits = [rank(index, query(a.question.text), (a.question.contract_id,), settings) for a in answered]
        for opening in (False, True):
            shares = []
            for k in K:
                found = 0
                for label, ranked in zip(answered, hits, strict=True):
                    passages = [hit.passage for hit in ranked[:k]]
                    if opening:
                        passages.append(index.passages(label.question.contract_id)[0])
                    found += holds(label, passages)
                shares.append(found / len(answered))
            table.append((wording + (" + opening" if opening else ""), shares))
    return table


def main() -> None:
    """Read the arguments, build the index, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a CUADv1-format file; default: generated contracts")
    parser.add_argument("--max-contracts", type=int)
    parser.add_argument("--per-house", type=int, default=15, help="generated contracts a house")
    parser.add_argument("--seed", type=int, default=5)
    args = parser.parse_args()
    if args.corpus:
        corpus = read_cuad(args.corpus, max_contracts=args.max_contracts)
    else:
        corpus = write_corpus(HOUSES, args.per_house * len(HOUSES), seed=args.seed)
    with tempfile.TemporaryDirectory() as folder:
        index = PassageIndex.build(corpus.contracts, folder=Path(folder) / "index", embedder=load_embedder())
        table = recall_table(corpus, index)
        index.close()
    n = sum(bool(label.spans) for label in corpus.labels)
    print(f"{len(corpus.contracts)} contracts, {n} answered questions; share with all gold spans retrieved")
    print(f"{'':30}" + "".join(f"{f'k={k}':>8}" for k in K))
    for variant, shares in table:
        print(f"{variant:30}" + "".join(f"{share:8.3f}" for share in shares))


if __name__ == "__main__":
    main()
