"""The base's own byte-level BPE: digits apart, DSPy's boilerplate as whole tokens, a chat template."""

from collections.abc import Iterable

import dspy
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from modules.signatures import NOT_FOUND, CompareAnswers, ReviewPassages, WriteQuestion

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY_SIZE = 2560
_FIELDS = ("passages", "passage", "question", "candidates", "quotes", "answer", "better", "completed")


def boilerplate() -> list[str]:
    """The strings of DSPy's chat format and of CUAD's question frame that become one token each.

    They are cut from what the adapter itself writes, so that a new DSPy version shows up as a longer prompt, not a
    wrong one.
    """
    pieces = [f"[[ ## {field} ## ]]\n" for field in _FIELDS] + [f"\n\n[[ ## {field} ## ]]\n" for field in _FIELDS]
    adapter = dspy.ChatAdapter()
    for signature in (ReviewPassages, WriteQuestion, CompareAnswers):
        inputs = dict.fromkeys(signature.input_fields, "\x00")
        system, user = (message["content"] for message in adapter.format(signature, demos=[], inputs=inputs))
        pieces += [line + "\n" for line in system.split("\n") if len(line) > 12 and "[[" not in line]
        pieces += [system.rsplit("\n", 1)[-1], "\n\n" + user.rsplit("\n\n", 1)[-1]]
    frame = 'Highlight the parts (if any) of this contract related to "'
    return list(dict.fromkeys([*pieces, frame, '" that should be reviewed by a lawyer. Details: ', NOT_FOUND]))


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """A tokenizer of `VOCABULARY_SIZE` tokens trained on `texts`; any text can be encoded and decoded back exactly."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    whole = boilerplate()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE - len(whole),
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(texts, trainer)
    core.add_tokens([AddedToken(piece, normalized=False, special=False) for piece in whole])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
