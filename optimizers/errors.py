"""The errors of this room, by boundary."""


class ModelError(RuntimeError):
    """A model, tokenizer or adapter cannot be served as asked; the message says what to do."""


class TrainingError(RuntimeError):
    """Weights cannot be trained as asked, or training went wrong; the message says what to do."""
