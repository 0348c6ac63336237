"""Does retrieval alone know which questions a contract does not answer? Fitted on some contracts, scored on others.

    python -m benchmarks.absence --corpus CUADv1.json                              # 60 held-out contracts of it
    python -m benchmarks.absence --corpus CUADv1.json --embedder tuned/embedder --max-chars 1000

Fitted on the validation contracts, all questions of the test contracts count. A question is called answered where its
probability is one half or more; called absent, as reviewers see it, where it is below the fitted threshold. Intervals
are 95%, from a bootstrap over contracts.
"""

import argparse
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.retrieval import split
from corpora.cuad import bare_question, read_cuad
from corpora.splits import sample_contracts
from corpora.types import Corpus
from modules.absence import AnswerModel, p_answered
from modules.embedder import load_embedder
from modules.retrieve import evidence_in
from modules.retriever import PassageIndex
from program.examples import to_examples
from program.intervals import ratio_interval
from program.metrics import f1, precision, ratio, recall
from program.report import interval_text
from program.retrieval_fit import fit_answers
from program.summary import calibration_error, reliability_table


def report(test: Corpus, index: PassageIndex, model: AnswerModel) -> None:
    """Print what the model says of the test contracts' questions."""
    examples = to_examples(test)
    queries = [bare_question(example.question) for example in examples]
    stated = np.array(
        [p_answered(model, q, evidence_in(index, q, e.contract_id)) for q, e in zip(queries, examples, strict=True)]
    )
    truth, contracts = np.array([e.found for e in examples]), [e.contract_id for e in examples]
    said = stated >= 0.5
    counts = np.stack([said & truth, said & ~truth, ~said & truth], axis=1).astype(float)
    print(f"\n{len(truth)} questions, {len(set(contracts))} contracts, {truth.mean():.1%} answered")
    for name, statistic in (("detection F1", f1), ("precision", precision), ("recall", recall)):
        print(f"{name:32}{interval_text(asdict(ratio_interval(counts, contracts, statistic)))}")
    absent = stated < model.threshold
    for name, chosen in (("answered, called absent", truth), ("absent, called absent", ~truth)):
        shares = np.stack([absent[chosen], np.ones(chosen.sum())], axis=1)
        keys = [key for key, one in zip(contracts, chosen, strict=True) if one]
        print(f"{name:32}{interval_text(asdict(ratio_interval(shares, keys, ratio)))}")
    table = reliability_table(list(zip(stated.tolist(), truth.astype(float).tolist(), strict=True)), bins=10)
    print(f"{'calibration error (10 bins)':32}{100 * (calibration_error(table) or 0):5.1f}")
    print(f"{'area under ROC':32}{100 * roc_auc_score(truth, stated):5.1f}")
    balanced = by_category([e.category for e in examples], said, truth)
    print(f"{'balanced accuracy, mean of categories':32}{100 * np.mean(list(balanced.values())):5.1f}")
    for category, accuracy in sorted(balanced.items(), key=lambda item: item[1]):
        print(f"    {category:36}{100 * accuracy:5.1f}")


def by_category(categories: Sequence[str], said: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """The mean of both kinds' accuracies for each category that has both kinds."""
    rows = defaultdict(list)
    for category, one, right in zip(categories, said, truth, strict=True):
        rows[category].append((one == right, right))
    both = {key: own for key, own in rows.items() if len({right for _, right in own}) == 2}
    return {
        key: float(np.mean([np.mean([ok for ok, right in own if right == kind]) for kind in (True, False)]))
        for key, own in both.items()
    }


def main() -> None:
    """Read the arguments, index, fit, print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True, help="a CUADv1-format file")
    parser.add_argument("--embedder", help="a folder or a hub id; default: the packaged all-MiniLM-L6-v2")
    parser.add_argument("--max-chars", type=int, default=600)
    parser.add_argument("--max-contracts", type=int, help="of either side")
    parser.add_argument("--bf16", action="store_true", help="embed in bfloat16: faster, cosines within .005")
    args = parser.parse_args()
    parts = split(read_cuad(args.corpus))
    n = args.max_contracts
    val, test = (sample_contracts(part, n, seed=0) if n else part for part in (parts.val, parts.test))
    with tempfile.TemporaryDirectory() as scratch, torch.autocast("cpu", torch.bfloat16, enabled=args.bf16):
        index = PassageIndex.build(
            val.contracts + test.contracts,
            folder=scratch, embedder=load_embedder(args.embedder), max_chars=args.max_chars,
        )  # fmt: skip
        model = fit_answers(index, to_examples(val))
        if model is None:
            raise SystemExit("the validation contracts' questions are all answered, or none is: nothing can be fitted")
        report(test, index, model)
        index.close()


if __name__ == "__main__":
    main()
