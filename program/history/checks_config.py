"""`evergreen.toml`: readable, its files there, its frozen test set apart from what is learnt from, and large enough."""

from collections.abc import Sequence
from pathlib import Path

from corpora.cuad import read_cuad
from corpora.errors import CorpusError
from corpora.splits import nearly_among
from corpora.types import Contract, Corpus
from modules.index_files import StoreError, read_contracts
from program.config import CompileConfig, ConfigError, refuse_unknown
from program.gate.power import questions_needed
from program.gate.types import Decision, GateError, GateRules, from_json
from program.history.findings import Finding, odd, well, wrong
from program.releases.store import ReleaseStore
from program.releases.types import ReleaseError
from program.renewal.config import FILE_NAME, RenewalConfig, load_renewal
from program.renewal.home import Home
from program.runs import RunError, read_run

_SHOWN = 3


def check_config(home: Home) -> list[Finding]:
    """The config and all that it names; CUADv1 files are read whole, which near-duplicates need."""
    try:
        config = load_renewal(home.path)
        refuse_unknown(config.compile, CompileConfig)
        rules = GateRules(**config.gate)
    except (ConfigError, GateError, TypeError) as error:
        return [wrong(FILE_NAME, str(error), "mend it: neither renew nor watch can begin")]
    found, corpora = [well(FILE_NAME, "every key is known")], {}
    for name, path in {"corpus": config.corpus, "frozen": config.frozen, **config.skills}.items():
        try:
            corpora[name] = read_cuad(path)
        except (CorpusError, OSError) as error:
            found.append(wrong(f"file of {name}", str(error), f"correct its path in {FILE_NAME}, or put the file back"))
    unlabelled, findings = _unlabelled(config)
    found += findings
    if "frozen" not in corpora:
        return found
    frozen = corpora["frozen"]
    if "corpus" in corpora:
        found += _overlap_of_corpus(frozen, corpora["corpus"])
    found += _overlap_of_others(home, frozen, unlabelled)
    return [*found, *_power(home, frozen, rules)]


def _unlabelled(config: RenewalConfig) -> tuple[Sequence[Contract], list[Finding]]:
    """The contracts that nobody has labelled; of a library its files alone are read, its vectors stay closed."""
    if config.contracts is None:
        return (), []
    path = Path(config.contracts)
    try:
        if path.is_dir():
            contracts = tuple(stored.contract for stored in read_contracts(path))
            if not contracts:  # a tuned retriever has its index in a folder of its own
                contracts = tuple(stored.contract for one in path.glob("*/index") for stored in read_contracts(one))
        else:
            contracts = read_cuad(path).contracts
    except (CorpusError, StoreError, OSError) as error:
        remedy = f"correct its path in {FILE_NAME}, or make it again (`evergreen index`)"
        return (), [wrong("file of contracts", str(error), remedy)]
    if not contracts:
        return (), [wrong("file of contracts", f"{path} holds no contract", "index some, or leave the key out")]
    return contracts, [well("contracts", f"{len(contracts)} without labels")]


def _overlap_of_corpus(frozen: Corpus, corpus: Corpus) -> list[Finding]:
    """A renewal leaves such contracts out of its training, so that a few are no harm."""
    like = nearly_among(corpus.contracts, frozen.contracts)
    told = f"{len(like)} of the corpus's {len(corpus.contracts)} contracts are (nearly) in the frozen set"
    if not like:
        return [well("frozen set", f"{len(frozen.contracts)} contracts, none of them (nearly) in the corpus")]
    if len(like) == len(corpus.contracts):
        return [wrong("frozen set", told, "give the gate contracts that nothing is trained on")]
    return [odd("frozen set", f"{told}: {_some(like)}", "renewals leave them out of training; better take them out")]


def _overlap_of_others(home: Home, frozen: Corpus, unlabelled: Sequence[Contract]) -> list[Finding]:
    found = []
    if unlabelled and (like := nearly_among(unlabelled, frozen.contracts)):
        why = f"{len(like)} of the unlabelled contracts are (nearly) in it: {_some(like)}"
        found.append(wrong("frozen set", why, "take them out of the library: renewals refuse to learn from them"))
    try:
        live = ReleaseStore.open(home.releases).live()
        splits = read_run(live.path).data.get("splits", {}) if live else {}
    except (ReleaseError, RunError):
        return found  # check_releases says why
    learnt = {name for side in ("train", "val") for name in splits.get(side, ())}
    if like := sorted(learnt & {contract.id for contract in frozen.contracts}):
        why = f"the live release has learnt from {len(like)} of its contracts: {_some(like)}"
        found.append(wrong("frozen set", why, "freeze others: scores on these are of memory"))
    return found


def _power(home: Home, frozen: Corpus, rules: GateRules) -> list[Finding]:
    """Whether the gate will decide at all: enough questions, and the test set not used up (program/gate/decide.py)."""
    contracts = {contract.id for contract in frozen.contracts}
    used = [one for one in _decisions(home) if one.looked and contracts & set(one.contracts)]
    level = 1 - (1 - rules.level) / rules.max_decisions
    expected = max([rules.detectable, *(one.discordance for one in used)]) if used else rules.discordance
    effect = max((one.design_effect for one in used), default=1.0)
    needed, n = questions_needed(expected, rules.detectable, level, rules.min_power, effect), len(frozen.labels)
    told = f"{n} frozen questions, about {needed} are needed for a gain of {100 * rules.detectable:.3g} points"
    found = [well("gate", told)]
    if n < needed:
        found = [odd("gate", told, f"label about {needed - n} more: until then nothing is promoted")]
    left = rules.max_decisions - len({one.id for one in used})
    if left <= 0:
        why = f"the frozen set has decided {rules.max_decisions} times, as often as it may"
        found.append(odd("gate", why, "freeze other contracts: until then nothing is promoted"))
    return found


def _decisions(home: Home) -> list[Decision]:
    found = []
    for path in sorted(home.renewals.glob("*/decision.json")):
        try:
            found.append(from_json(path.read_text(encoding="utf-8")))
        except (GateError, OSError) as error:
            raise GateError(f"{path}: {error}") from error
    return found


def _some(names: Sequence[str] | set[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    return f"{', '.join(shown)}{' ...' if len(names) > len(shown) else ''}"
