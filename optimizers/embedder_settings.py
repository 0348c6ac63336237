"""How an embedder is trained: one frozen object."""

from dataclasses import dataclass

from optimizers.errors import TrainingError

LOSSES = ("mnrl", "gist", "lists")


@dataclass(frozen=True, slots=True)
class EmbedderSettings:
    """How an embedder is trained.

    `loss`: "mnrl", each passage against all others of its batch (multiple negatives ranking; Henderson et al. 2017,
    arXiv 1705.00652), "gist", the same without those that the untrained embedder finds nearer than the right one
    (Solatorio 2024, arXiv 2402.16829), or "lists", all questions of a contract against all its passages and sentences.

    Of "lists": a step is one contract, of which at most `list_size` passages are taken, padded `mini_batch_size` at a
    time, and a question without an answer has to keep them all below the cosine `absent_cosine`.

    Of the others: `symmetric` asks the reverse too: which question a passage answers. A batch is `batch_size` questions
    on different topics, each with `hard_negatives` drawn from its `hardest` ones; it is embedded `mini_batch_size`
    texts at a time (gradient cache; Gao et al. 2021, arXiv 2101.06983), so a large one takes no more memory.

    `max_steps` above 0 is in place of `epochs`. After each of `validations` equal parts the score is taken; after
    `patience` parts without a better one it ends. `bf16` None: on CUDA, and on CPUs that have the instructions. Raises
    TrainingError.
    """

    epochs: float = 2.0
    max_steps: int = -1
    batch_size: int = 32
    hard_negatives: int = 1
    hardest: int = 8
    learning_rate: float = 1e-4
    warmup_share: float = 0.1
    loss: str = "mnrl"
    symmetric: bool = True
    scale: float = 20.0
    list_size: int = 64
    absent_cosine: float = 0.5
    mini_batch_size: int = 8
    validations: int = 4
    patience: int = 2
    bf16: bool | None = None
    seed: int = 0
    progress: bool = True

    def __post_init__(self) -> None:
        if self.loss not in LOSSES:
            raise TrainingError(f"loss={self.loss!r} is not known; use one of {LOSSES}")
        for name in ("batch_size", "hardest", "mini_batch_size", "validations", "patience", "list_size"):
            if getattr(self, name) < 1:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be 1 or more")
        for name in ("epochs", "learning_rate", "scale"):
            if not getattr(self, name) > 0:
                raise TrainingError(f"{name}={getattr(self, name)!r} must be above 0")
        if not -1 < self.absent_cosine < 1:
            raise TrainingError(f"absent_cosine={self.absent_cosine!r} must be between -1 and 1")
        if self.hard_negatives < 0 or not 0 <= self.warmup_share < 1:
            raise TrainingError(
                f"hard_negatives={self.hard_negatives!r} must be 0 or more, and warmup_share={self.warmup_share!r} "
                "0 or more and below 1"
            )
