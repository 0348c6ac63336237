"""The errors of serving beside the store's own."""

from program.feedback.rows import FeedbackError


class ServeError(RuntimeError):
    """The server cannot start, or the program gave what cannot be recorded; the message says which and what to do."""


class ConflictError(FeedbackError):
    """What is asked for goes, but not now, or not as things stand."""


class AgreementError(ConflictError):
    """There is nothing to choose between: all candidates say the same."""


class ChangedError(ConflictError):
    """The contract has another text than when it was asked."""
