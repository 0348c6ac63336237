"""Character precision and recall of retrieval at k, inside the right contract and over all of them.

    python -m benchmarks.retrieval --corpus CUADv1.json                    # 60 held-out contracts of it
    python -m benchmarks.retrieval --train A.json --test B.json            # any CUADv1-format files
    python -m benchmarks.retrieval --corpus CUADv1.json --max-contracts 10 --out retrieval.json

One run, one embedder; the reference line is 500-character chunks ranked by cosine. Only answered questions are asked.
In LegalBench-RAG's style a question names the contract ("Consider the <name> between <parties>; <question>"), by its
labels. `--fit N` chooses the fusion on N training contracts. Intervals are 95%, from a bootstrap over contracts.
"""

import argparse
import json
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from corpora.cuad import bare_question, read_cuad
from corpora.splits import Split, sample_contracts, split_corpus
from corpora.types import Contract, Corpus, Label, Passage, Span
from modules.definitions import defining_passages
from modules.embedder import load_embedder
from modules.embedding import Embedder, embed
from modules.retrieval_settings import RetrievalSettings
from modules.retrieve import rank, with_neighbours
from modules.retriever import Hit, PassageIndex
from modules.routing import make_router, route
from program.intervals import mean_interval
from program.retrieval_metric import character_scores

K = (1, 2, 4, 8, 16, 32, 64)
N_HELD_OUT, SPLIT_SEED = 60, 60
CHUNK_CHARS = 500
Asked = tuple[Label, str]
Select = Callable[[Label, Sequence[Hit], int], list[Passage]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: (query, k) precision and recall, and the contract of each query."""

    name: str
    precision: np.ndarray
    recall: np.ndarray
    contracts: list[str]


class RememberingEmbedder:
    """An embedder that embeds no text twice in a run."""

    def __init__(self, embedder: Any) -> None:
        self._embedder, self._vectors = embedder, {}
        self.max_seq_length, self.tokenizer = embedder.max_seq_length, embedder.tokenizer

    def encode(self, sentences: list[str], **kwargs: Any) -> np.ndarray:
        new = [text for text in dict.fromkeys(sentences) if text not in self._vectors]
        self._vectors.update(zip(new, self._embedder.encode(new, **kwargs) if new else [], strict=True))
        return np.array([self._vectors[text] for text in sentences])


def chunks(contract: Contract) -> list[Passage]:
    """The reference cut: at most 500 characters, at empty lines, else line ends, else spaces, else anywhere."""
    spans = _chunked(contract.text, 0, len(contract.text), ("\n\n", "\n", " "))
    return [Passage(f"{contract.id}:{a}-{b}", contract.id, a, b, contract.text[a:b]) for a, b in spans]


def _chunked(text: str, start: int, end: int, separators: Sequence[str]) -> list[tuple[int, int]]:
    if end - start <= CHUNK_CHARS:
        return [(start, end)]
    if not separators:
        return [(i, min(end, i + CHUNK_CHARS)) for i in range(start, end, CHUNK_CHARS)]
    cuts = [m.end() for m in re.finditer(re.escape(separators[0]), text[start:end])]
    edges = sorted({start, *(start + cut for cut in cuts), end})
    joined: list[tuple[int, int]] = []
    for piece in (p for a, b in zip(edges, edges[1:]) for p in _chunked(text, a, b, separators[1:])):  # noqa: B905
        if joined and piece[1] - joined[-1][0] <= CHUNK_CHARS:
            joined[-1] = (joined[-1][0], piece[1])
        else:
            joined.append(piece)
    return joined


def named(corpus: Corpus) -> dict[str, str]:
    """How a person would call each contract, by its labels: "Supply Agreement between Acme Corp. and Beta LLC"."""
    texts = {contract.id: contract.text for contract in corpus.contracts}
    parts: dict[str, dict[str, list[str]]] = {key: {} for key in texts}
    for label in corpus.labels:
        text = texts[label.question.contract_id]
        parts[label.question.contract_id][label.question.category] = [
            " ".join(text[span.start : span.end].split()).strip(' "“”().,') for span in label.spans
        ]
    names = {}
    for key, own in parts.items():
        title = next(iter(own.get("Document Name", [])), "")
        parties = [
            p for p in own.get("Parties", []) if 4 <= len(p) <= 60 and p[0].isupper() and not re.search('["“]', p)
        ]
        parties = sorted(dict.fromkeys(parties), key=len, reverse=True)[:2]
        if title and parties:
            names[key] = f"{title.title()} between {' and '.join(parties)}"
    return names


def score(name: str, asked: Sequence[Asked], ranked: Sequence[Sequence[Hit]], select: Select | None = None) -> Row:
    """A row of the table; `select` takes the k passages that count, by default the k best.

    Where nothing is retrieved, which BM25 does for a question without a shared word, the precision is 0.
    """
    select = select or (lambda _, hits, k: [hit.passage for hit in hits[:k]])
    scores = []
    for (label, _), hits in zip(asked, ranked, strict=True):
        gold = [(label.question.contract_id, span) for span in label.spans]
        lists = (select(label, hits, k) for k in K)
        scores.append(
            [character_scores(gold, [(p.contract_id, Span(p.start, p.end)) for p in passages]) for passages in lists]
        )
    values = np.array(scores)
    return Row(
        name, np.nan_to_num(values[:, :, 0]), values[:, :, 1], [label.question.contract_id for label, _ in asked]
    )


def reference(corpus: Corpus, asked: Sequence[Asked], embedder: Embedder, inside: bool) -> list[list[Hit]]:
    """The 64 chunks with the highest cosine, of the right contract or of all."""
    cut = {contract.id: chunks(contract) for contract in corpus.contracts}
    vectors = {key: embed(embedder, [chunk.text for chunk in own]) for key, own in cut.items()}
    everything = [chunk for own in cut.values() for chunk in own], np.concatenate(list(vectors.values()))
    ranked = []
    for (label, _), query_D in zip(asked, embed(embedder, [query for _, query in asked]), strict=True):
        key = label.question.contract_id
        passages, vectors_P_D = (cut[key], vectors[key]) if inside else everything
        scores_P = vectors_P_D @ query_D
        ranked.append([Hit(passages[i], float(scores_P[i])) for i in np.argsort(-scores_P, kind="stable")[: max(K)]])
    return ranked


def fit(index: PassageIndex, asked: Sequence[Asked], start: RetrievalSettings) -> RetrievalSettings:
    """The fusion with the highest mean recall at 1, 2, 4 and 8 on these questions."""
    grid = [replace(start, fusion="sum", lexical_weight=w) for w in (0.3, 0.5, 0.7, 1.0, 1.5)]
    grid += [
        replace(start, fusion="rrf", rrf_constant=c, lexical_weight=w)
        for c, w in product((5.0, 10.0, 20.0, 60.0), (0.5, 0.7, 1.0, 1.5))
    ]
    return max(grid, key=lambda s: score("", asked, inside_hits(index, asked, s)).recall[:, :4].mean())


def inside_hits(index: PassageIndex, asked: Sequence[Asked], settings: RetrievalSettings) -> list[Sequence[Hit]]:
    """Each question's ranking of its own contract."""
    return [rank(index, query, (label.question.contract_id,), settings) for label, query in asked]


def inside_rows(
    corpus: Corpus, plain: PassageIndex, headed: PassageIndex, embedder: Embedder, settings: RetrievalSettings
) -> Iterator[Row]:
    """The rows of the bare question inside the right contract."""
    asked = [(label, bare_question(label.question.text)) for label in corpus.labels if label.spans]
    dense, words = replace(settings, lexical_weight=0.0), replace(settings, dense_weight=0.0)
    yield score("reference: 500-character chunks", asked, reference(corpus, asked, embedder, inside=True))
    yield score("dense", asked, inside_hits(plain, asked, dense))
    yield score("dense, headings embedded", asked, inside_hits(headed, asked, dense))
    yield score("BM25", asked, inside_hits(plain, asked, words))
    fused = inside_hits(plain, asked, settings)
    yield score("fused", asked, fused)
    other = replace(settings, fusion="sum" if settings.fusion == "rrf" else "rrf", lexical_weight=1.0)
    yield score(f"fused by {other.fusion}", asked, inside_hits(plain, asked, other))
    yield score("fused, headings embedded", asked, inside_hits(headed, asked, settings))

    def opening(label: Label, hits: Sequence[Hit], k: int) -> list[Passage]:
        return [*(hit.passage for hit in hits[: k - 1]), plain.passages(label.question.contract_id)[0]]

    def neighbours(label: Label, hits: Sequence[Hit], k: int) -> list[Passage]:
        return [hit.passage for hit in with_neighbours(plain, hits[: -(-k // 3)], 1)][:k]

    def definitions(label: Label, hits: Sequence[Hit], k: int) -> list[Passage]:
        key, chosen = label.question.contract_id, [hit.passage for hit in hits[:k]]
        added = defining_passages(plain.contract_text(key), plain.passages(key), chosen[: k - 1], 1)
        return [*chosen[: k - 1], *added] if added else chosen

    for name, select in (("opening", opening), ("neighbours", neighbours), ("definitions", definitions)):
        yield score(f"fused, of the k: {name}", asked, fused, select)


def routing_figures(corpus: Corpus) -> dict[str, float]:
    """How often the contract that a question names is found, among how many; shares of 1, for three ways of naming."""
    names, router = named(corpus), make_router({contract.id: contract for contract in corpus.contracts})
    bare = sorted({bare_question(label.question.text) for label in corpus.labels})
    figures: dict[str, float] = {"contracts": len(names)}
    for way, query in (
        ("Consider the <name> between <parties>; ...", "Consider the {}; which law governs?"),
        ("Under the agreement with <party>, ...", "Under the agreement with {}, which law governs?"),
        ("... in the contract with <party>?", "Which law governs in the contract with {}?"),
    ):
        said = {key: name if way.startswith("C") else _party(name) for key, name in names.items()}
        routes = {key: route(router, query.format(said[key])).contract_ids for key in names}
        figures[f"{way} first"] = float(np.mean([to[:1] == (key,) for key, to in routes.items()]))
        figures[f"{way} among those routed to"] = float(np.mean([key in to for key, to in routes.items()]))
        figures[f"{way} another alone"] = float(np.mean([bool(to) and key not in to for key, to in routes.items()]))
    figures["bare questions routed"] = float(np.mean([bool(route(router, query).contract_ids) for query in bare]))
    return figures


def _party(name: str) -> str:
    return name.rpartition(" between ")[2].split(" and ")[0]


def whole_rows(corpus: Corpus, plain: PassageIndex, embedder: Embedder, settings: RetrievalSettings) -> list[Row]:
    """The rows over the whole corpus, the contract named in the question."""
    names = named(corpus)
    labels = [label for label in corpus.labels if label.spans and label.question.contract_id in names]
    asked = [
        (label, f"Consider the {names[label.question.contract_id]}; {bare_question(label.question.text)}")
        for label in labels
    ]
    dense = replace(settings, lexical_weight=0.0)
    router = make_router({contract.id: contract for contract in corpus.contracts})
    routes = [route(router, query) for _, query in asked]
    rows = [score("reference: 500-character chunks", asked, reference(corpus, asked, embedder, inside=False))]
    for name, how in (("dense", dense), ("fused", settings)):
        rows.append(score(name, asked, [rank(plain, query, (), how) for _, query in asked]))
        routed = [rank(plain, to.question, to.contract_ids, how) for to in routes]
        rows.append(score(f"{name}, routed", asked, routed))
    return rows


def print_rows(title: str, rows: Sequence[Row]) -> None:
    """The table: percent, with intervals at k = 1, 4 and 8."""
    print(f"\n{title}: {len(rows[0].contracts)} questions, {len(set(rows[0].contracts))} contracts")
    print(f"{'':34}{'P@1':>6}{'P@4':>6}" + "".join(f"{f'R@{k}':>{21 if k in (1, 4, 8) else 6}}" for k in K))
    for row in rows:
        cells = [f"{100 * row.precision[:, i].mean():6.1f}" for i in (0, 2)]
        for i, k in enumerate(K):
            found = mean_interval(row.recall[:, i], row.contracts)
            around = f" [{100 * found.low:.1f}, {100 * found.high:.1f}]" if k in (1, 4, 8) else ""
            cells.append(f"{f'{100 * found.mean:.1f}{around}':>{21 if k in (1, 4, 8) else 6}}")
        print(f"{row.name:34}" + "".join(cells), flush=True)


def as_json(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Every row's means and intervals at every k."""
    return [
        {"name": row.name, "n": len(row.contracts)}
        | {
            f"{metric}@{k}": asdict(mean_interval(getattr(row, metric)[:, i], row.contracts))
            for metric in ("precision", "recall")
            for i, k in enumerate(K)
        }
        for row in rows
    ]


def split(corpus: Corpus) -> Split:
    """60 contracts to choose on and 60 to score on, of a small corpus three in ten; the same in every run."""
    share = min(N_HELD_OUT / len(corpus.contracts), 0.3)
    return split_corpus(corpus, fractions=(1 - 2 * share, share, share), seed=SPLIT_SEED)


def read(args: argparse.Namespace) -> tuple[Corpus | None, Corpus]:
    """Training and test contracts; those split off one corpus are the same in every run."""
    if args.corpus:
        parts = split(read_cuad(args.corpus))
        train, test = parts.train, parts.test
    else:
        train, test = (read_cuad(args.train) if args.train else None), read_cuad(args.test)
    if args.max_contracts and args.max_contracts < len(test.contracts):
        test = sample_contracts(test, args.max_contracts, seed=0)
    return train, test


def main() -> None:
    """Read the arguments, build the indexes, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, help="a CUADv1-format file, of which some contracts are held out")
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--max-contracts", type=int, help="of the test contracts")
    parser.add_argument("--embedder", help="a folder or a hub id; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument(
        "--bf16", action="store_true", help="embed in bfloat16: about twice as fast, cosines within .005"
    )
    parser.add_argument(
        "--routing", action="store_true", help="only how often the right contract is found: no embedding"
    )
    parser.add_argument("--fit", type=int, metavar="N", help="choose the fusion on N training contracts")
    parser.add_argument("--out", type=Path, help="write every figure as JSON")
    args = parser.parse_args()
    if not args.corpus and not args.test:
        parser.error("give --corpus, or --test (and --train)")
    train, test = read(args)
    routing = routing_figures(test)
    print("Routing:", *(f"  {name}: {figure:.3f}" for name, figure in routing.items()), sep="\n", flush=True)
    if args.routing:
        return
    model = load_embedder(args.embedder)
    embedder = RememberingEmbedder(model.bfloat16() if args.bf16 else model)
    settings = RetrievalSettings()
    with tempfile.TemporaryDirectory() as scratch:

        def index(contracts: Sequence[Contract], name: str, **options: Any) -> PassageIndex:
            return PassageIndex.build(contracts, folder=Path(scratch) / name, embedder=embedder, **options)

        if args.fit:
            if train is None:
                parser.error("--fit needs --train or --corpus")
            some = sample_contracts(train, args.fit, seed=0)
            asked = [(label, bare_question(label.question.text)) for label in some.labels if label.spans]
            settings = fit(index(some.contracts, "train"), asked, settings)
        print(f"settings: {settings}", flush=True)
        plain = index(test.contracts, "plain")
        whole = whole_rows(test, plain, embedder, settings)
        print_rows("Over all contracts, the right one named", whole)
        headed = index(test.contracts, "headed", embed_headings=True)
        inside = list(inside_rows(test, plain, headed, embedder, settings))
        print_rows("Inside the right contract, bare question", inside)
        for one in (plain, headed):
            one.close()
    if args.out:
        figures = {"settings": asdict(settings), "routing": routing, "whole": as_json(whole), "inside": as_json(inside)}
        args.out.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
