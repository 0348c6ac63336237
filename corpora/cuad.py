"""CUAD: its 41 categories, and reading and writing its SQuAD-style JSON.

The categories and their wording are those of the Contract Understanding Atticus Dataset (CUAD) v1, The Atticus Project
(D. Hendrycks, C. Burns, A. Chen, S. Ball, "CUAD: An Expert-Annotated NLP Dataset for Legal Contract Review", 2021,
arXiv 2103.06268), licensed CC BY 4.0. Changed here: white space only (no-break and doubled spaces are one plain space,
none at the ends).

One real row of `CATEGORIES`:

    Category("Parties", details="The two or more parties who signed the contract",
             question='Highlight the parts (if any) of this contract related to "Parties" that should be ...')

Not handled: CUAD's CSV and its PDFs; SQuAD's `plausible_answers` and `metadata` keys are read past.
"""

import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from corpora.errors import CorpusError
from corpora.types import Contract, Corpus, Label, Question, Span

_QUESTION = (
    'Highlight the parts (if any) of this contract related to "{name}" that should be reviewed by a lawyer. '
    "Details: {details}"
)
# fmt: off
_DETAILS = (
    ("Document Name", "The name of the contract"),
    ("Parties", "The two or more parties who signed the contract"),
    ("Agreement Date", "The date of the contract"),
    ("Effective Date", "The date when the contract is effective"),
    ("Expiration Date", "On what date will the contract's initial term expire?"),
    ("Renewal Term", "What is the renewal term after the initial term expires? This includes automatic extensions "
     "and unilateral extensions with prior notice."),
    ("Notice Period To Terminate Renewal", "What is the notice period required to terminate renewal?"),
    ("Governing Law", "Which state/country's law governs the interpretation of the contract?"),
    ("Most Favored Nation", "Is there a clause that if a third party gets better terms on the licensing or sale of "
     "technology/goods/services described in the contract, the buyer of such technology/goods/services under the "
     "contract shall be entitled to those better terms?"),
    ("Non-Compete", "Is there a restriction on the ability of a party to compete with the counterparty or operate "
     "in a certain geography or business or technology sector?"),
    ("Exclusivity", "Is there an exclusive dealing commitment with the counterparty? This includes a commitment to "
     "procure all “requirements” from one party of certain technology, goods, or services or a prohibition on "
     "licensing or selling technology, goods or services to third parties, or a prohibition on collaborating or "
     "working with other parties), whether during the contract or after the contract ends (or both)."),
    ("No-Solicit Of Customers", "Is a party restricted from contracting or soliciting customers or partners of the "
     "counterparty, whether during the contract or after the contract ends (or both)?"),
    ("Competitive Restriction Exception", "This category includes the exceptions or carveouts to Non-Compete, "
     "Exclusivity and No-Solicit of Customers above."),
    ("No-Solicit Of Employees", "Is there a restriction on a party’s soliciting or hiring employees and/or "
     "contractors from the counterparty, whether during the contract or after the contract ends (or both)?"),
    ("Non-Disparagement", "Is there a requirement on a party not to disparage the counterparty?"),
    ("Termination For Convenience", "Can a party terminate this contract without cause (solely by giving a notice "
     "and allowing a waiting period to expire)?"),
    ("Rofr/Rofo/Rofn", "Is there a clause granting one party a right of first refusal, right of first offer or "
     "right of first negotiation to purchase, license, market, or distribute equity interest, technology, assets, "
     "products or services?"),
    ("Change Of Control", "Does one party have the right to terminate or is consent or notice required of the "
     "counterparty if such party undergoes a change of control, such as a merger, stock sale, transfer of all or "
     "substantially all of its assets or business, or assignment by operation of law?"),
    ("Anti-Assignment", "Is consent or notice required of a party if the contract is assigned to a third party?"),
    ("Revenue/Profit Sharing", "Is one party required to share revenue or profit with the counterparty for any "
     "technology, goods, or services?"),
    ("Price Restrictions", "Is there a restriction on the ability of a party to raise or reduce prices of "
     "technology, goods, or services provided?"),
    ("Minimum Commitment", "Is there a minimum order size or minimum amount or units per-time period that one party"
     " must buy from the counterparty under the contract?"),
    ("Volume Restriction", "Is there a fee increase or consent requirement, etc. if one party’s use of the "
     "product/services exceeds certain threshold?"),
    ("Ip Ownership Assignment", "Does intellectual property created by one party become the property of the "
     "counterparty, either per the terms of the contract or upon the occurrence of certain events?"),
    ("Joint Ip Ownership", "Is there any clause providing for joint or shared ownership of intellectual property "
     "between the parties to the contract?"),
    ("License Grant", "Does the contract contain a license granted by one party to its counterparty?"),
    ("Non-Transferable License", "Does the contract limit the ability of a party to transfer the license being "
     "granted to a third party?"),
    ("Affiliate License-Licensor", "Does the contract contain a license grant by affiliates of the licensor or that"
     " includes intellectual property of affiliates of the licensor?"),
    ("Affiliate License-Licensee", "Does the contract contain a license grant to a licensee (incl. sublicensor) and"
     " the affiliates of such licensee/sublicensor?"),
    ("Unlimited/All-You-Can-Eat-License", "Is there a clause granting one party an “enterprise,” “all you can eat” "
     "or unlimited usage license?"),
    ("Irrevocable Or Perpetual License", "Does the contract contain a license grant that is irrevocable or "
     "perpetual?"),
    ("Source Code Escrow", "Is one party required to deposit its source code into escrow with a third party, which "
     "can be released to the counterparty upon the occurrence of certain events (bankruptcy, insolvency, etc.)?"),
    ("Post-Termination Services", "Is a party subject to obligations after the termination or expiration of a "
     "contract, including any post-termination transition, payment, transfer of IP, wind-down, last-buy, or similar "
     "commitments?"),
    ("Audit Rights", "Does a party have the right to audit the books, records, or physical locations of the "
     "counterparty to ensure compliance with the contract?"),
    ("Uncapped Liability", "Is a party’s liability uncapped upon the breach of its obligation in the contract? This"
     " also includes uncap liability for a particular type of breach such as IP infringement or breach of "
     "confidentiality obligation."),
    ("Cap On Liability", "Does the contract include a cap on liability upon the breach of a party’s obligation? "
     "This includes time limitation for the counterparty to bring claims or maximum amount for recovery."),
    ("Liquidated Damages", "Does the contract contain a clause that would award either party liquidated damages for"
     " breach or a fee upon the termination of a contract (termination fee)?"),
    ("Warranty Duration", "What is the duration of any warranty against defects or errors in technology, products, "
     "or services provided under the contract?"),
    ("Insurance", "Is there a requirement for insurance that must be maintained by one party for the benefit of the"
     " counterparty?"),
    ("Covenant Not To Sue", "Is a party restricted from contesting the validity of the counterparty’s ownership of "
     "intellectual property or otherwise bringing a claim against the counterparty for matters unrelated to the "
     "contract?"),
    ("Third Party Beneficiary", "Is there a non-contracting party who is a beneficiary to some or all of the "
     "clauses in the contract and therefore can enforce its rights against a contracting party?"),
)
# fmt: on


@dataclass(frozen=True, slots=True)
class Category:
    """One of CUAD's kinds of clause: `name` as its JSON spells it, `details` what it means, `question` both in full."""

    name: str
    details: str
    question: str


CATEGORIES = tuple(Category(name, details, _QUESTION.format(name=name, details=details)) for name, details in _DETAILS)
_BY_NAME = {category.name: category for category in CATEGORIES}
_BY_QUESTION = {" ".join(category.question.split()): category.name for category in CATEGORIES}
# CUAD's train_separate_questions.json asks a question once an answer, the ids ending in _0, _1 ...
_REPEAT = re.compile(r"_\d+$")
_SHAPE = "data[].{title, paragraphs[].{context, qas[].{id, question, is_impossible, answers[].{text, answer_start}}}}"
_FRAME = re.compile(
    r'Highlight the parts \(if any\) of this contract related to "(?P<name>.*?)" that should be reviewed by a lawyer\. '
    r"Details: (?P<details>.*)",
    re.S,
)
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


def category_asked(question: str) -> str | None:
    """The category whose question this is, whatever its white space; None for a question of somebody's own."""
    return _BY_QUESTION.get(" ".join(question.split()))


def question_text(category: str) -> str:
    """The full question CUAD asks about the category named `category`; CorpusError if there is no such category."""
    if category not in _BY_NAME:
        near = get_close_matches(category, _BY_NAME, n=3, cutoff=0.4)
        raise CorpusError(
            f"{category!r} is none of CUAD's 41 categories; near it: {', '.join(near) or 'none'}. "
            "Spell it as in CATEGORIES."
        )
    return _BY_NAME[category].question


def bare_question(text: str) -> str:
    """CUAD's question without the frame that all of them share, as `Governing Law: Which state/country's law ...`.

    Any other question comes back as it is. For retrieval: the frame pulls all questions towards the same passages.
    """
    match = _FRAME.match(text)
    return f"{match['name']}: {match['details']}" if match else text


def read_cuad(path: str | Path, *, max_contracts: int | None = None) -> Corpus:
    """Read a file in the format of CUADv1.json, every span checked against its contract's text.

    A title with several paragraphs becomes the contracts `title#0`, `title#1` ...; a question asked more than once is
    one label with all its spans, in document order. A category is what stands behind the id's last `__`, else the
    question. The optional key `short_answer` (this project's own) becomes `Label.answer`. `max_contracts` keeps the
    first so many. Raises CorpusError, naming file, contract and question, for whatever is not so.
    """
    if max_contracts is not None and max_contracts < 1:
        raise CorpusError(f"max_contracts is {max_contracts}; it must be 1 or more, or None for all.")
    path = Path(path)
    contracts: dict[str, Contract] = {}
    labels: dict[str, Label] = {}
    asked: dict[tuple[str, str], str] = {}
    for contract, qas, where in _contracts(_load(path), str(path)):
        known = contracts.get(contract.id)
        if known is None and max_contracts is not None and len(contracts) == max_contracts:
            break
        if known is not None and known.text != contract.text:
            raise CorpusError(f"{where}: the title stands twice in the file, with different texts. Rename one of them.")
        contracts[contract.id] = contract
        for i, qa in enumerate(qas):
            label = _label(qa, contract, f"{where}, qas[{i}]")
            question = label.question
            question_id = asked.setdefault((contract.id, question.text), question.id)
            labels[question_id] = _united(labels.get(question_id), label, f"{where}, question {question.id!r}")
    return Corpus(path.stem, tuple(contracts.values()), tuple(labels.values()))


def write_cuad(corpus: Corpus, path: str | Path) -> None:
    """Write `corpus` so that `read_cuad` gives the same contracts and labels back; whole or not at all.

    White space in questions is folded on reading. Raises CorpusError for a label of an unknown contract, and for a
    category that the question's id or text would not give back.
    """
    path = Path(path)
    qas: dict[str, list[dict[str, Any]]] = {contract.id: [] for contract in corpus.contracts}
    texts = {contract.id: contract.text for contract in corpus.contracts}
    for label in corpus.labels:
        question = label.question
        if question.contract_id not in qas:
            raise CorpusError(
                f"question {question.id!r} is about the contract {question.contract_id!r}, which the corpus "
                f"{corpus.name!r} does not hold. Add the contract or drop the label."
            )
        if _category(question.id, question.text) != question.category:
            raise CorpusError(
                f"question {question.id!r} has the category {question.category!r}, which reading the file back would "
                f"not give. End its id in '__{question.category}'."
            )
        qas[question.contract_id].append(_qa(label, texts[question.contract_id]))
    data = [
        {"title": contract_id, "paragraphs": [{"qas": of_contract, "context": texts[contract_id]}]}
        for contract_id, of_contract in qas.items()
    ]
    _replace(path, json.dumps({"version": "aok_v1.0", "data": data}))


def _load(path: Path) -> list[Any]:
    try:
        raw = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror}). Give a CUADv1-format file.") from error
    except (ValueError, RecursionError) as error:
        raise CorpusError(f"{path} is not JSON in UTF-8 ({error}). Save it again as CUADv1-format JSON.") from error
    return _get(raw, "data", list, str(path))


def _contracts(data: list[Any], path: str) -> Iterator[tuple[Contract, list[Any], str]]:
    for i, entry in enumerate(data):
        title = _get(entry, "title", str, f"{path}, data[{i}]")
        paragraphs = _get(entry, "paragraphs", list, f"{path}, contract {title!r}")
        for j, paragraph in enumerate(paragraphs):
            contract_id = f"{title}#{j}" if len(paragraphs) > 1 else title
            where = f"{path}, contract {contract_id!r}"
            text = _get(paragraph, "context", str, where)
            if not text.strip():
                raise CorpusError(f"{where}: the contract has no text. Give it its text, or take it out of the file.")
            yield Contract(contract_id, text), _get(paragraph, "qas", list, where), where


def _label(qa: Any, contract: Contract, where: str) -> Label:
    """One entry of `qas`, its id's repeat number (CUAD's `..._0`, `..._1`) taken off."""
    question_id = _get(qa, "id", str, where)
    if _REPEAT.sub("", question_id).rpartition("__")[2] in _BY_NAME:
        question_id = _REPEAT.sub("", question_id)
    where = f"{where}, question {question_id!r}"
    text = " ".join(_get(qa, "question", str, where).split())
    if not text or not question_id:
        raise CorpusError(f"{where}: the question or its id is empty. Give both.")
    answers = _get(qa, "answers", list, where)
    short_answer = _get(qa, "short_answer", str, where) if "short_answer" in qa else None
    if _get(qa, "is_impossible", bool, where) is bool(answers):
        fault = "true, but there are answers" if answers else "false, but there is no answer"
        raise CorpusError(f"{where}: is_impossible is {fault}. Correct whichever is wrong.")
    spans = {_span(answer, contract, f"{where}, answers[{i}]") for i, answer in enumerate(answers)}
    question = Question(question_id, contract.id, _category(question_id, text), text)
    return Label(question, tuple(sorted(spans, key=lambda span: (span.start, span.end))), short_answer)


def _span(answer: Any, contract: Contract, where: str) -> Span:
    text, start = _get(answer, "text", str, where), _get(answer, "answer_start", int, where)
    found = contract.text[start : start + len(text)] if start >= 0 else ""
    if not text or found != text:
        at = contract.text.find(text) if text else -1
        hint = f"it stands at {at}" if at >= 0 else "it is nowhere in the contract"
        raise CorpusError(
            f"{where}: the contract has {found[:60]!r} at {start} where the answer is {text[:60]!r} ({hint}). Offsets "
            "count characters of `context`, from 0; correct answer_start or the text."
        )
    return Span(start, start + len(text))


def _united(known: Label | None, label: Label, where: str) -> Label:
    """One label of two that ask the same, or CorpusError where they contradict each other."""
    if known is None:
        return label
    if (known.question.contract_id, known.question.text) != (label.question.contract_id, label.question.text):
        raise CorpusError(f"{where}: the id belongs to another question too. Give each question an id of its own.")
    if bool(known.spans) != bool(label.spans) or known.answer != label.answer:
        raise CorpusError(f"{where}: it stands twice in the file and is answered differently. Keep the right one.")
    spans = sorted({*known.spans, *label.spans}, key=lambda span: (span.start, span.end))
    return Label(known.question, tuple(spans), known.answer)


def _category(question_id: str, question: str) -> str:
    _, separator, name = question_id.rpartition("__")
    return name if separator and name else question


def _qa(label: Label, text: str) -> dict[str, Any]:
    answers = [{"text": text[span.start : span.end], "answer_start": span.start} for span in label.spans]
    question = label.question
    qa = {"answers": answers, "id": question.id, "question": question.text, "is_impossible": not answers}
    return qa if label.answer is None else qa | {"short_answer": label.answer}


def _get(mapping: Any, key: str, kind: type, where: str) -> Any:
    """`mapping[key]` if it is there and of that JSON type, else CorpusError."""
    if not isinstance(mapping, dict) or key not in mapping:
        got = f"the keys {sorted(mapping)[:8]}" if isinstance(mapping, dict) else f"a {type(mapping).__name__}"
        raise CorpusError(f"{where}: no {key!r}, but {got}. A CUADv1-format file is {_SHAPE}.")
    value = mapping[key]
    if type(value) is not kind:
        raise CorpusError(f"{where}: {key!r} is a {type(value).__name__}, not a {kind.__name__}. Correct it.")
    if kind is str and _LONE_SURROGATE.search(value):
        raise CorpusError(f"{where}: {key!r} holds half a character (a lone surrogate). Save the file again as UTF-8.")
    return value


def _replace(path: Path, text: str) -> None:
    """Write beside `path`, flush to the disk, then put it in place: a reader never sees half a file."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with beside.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise
