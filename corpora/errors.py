"""The one error of this room."""


class CorpusError(ValueError):
    """A corpus, contract or label breaks a rule; the message names it and says what to do."""
