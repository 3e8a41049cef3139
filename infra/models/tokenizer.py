"""A byte-level tokenizer: token n is byte n, then <s>, </s> and <pad>. Needs no vocabulary to be learned."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

BOS, EOS, PAD = "<s>", "</s>", "<pad>"
BOS_ID, EOS_ID, PAD_ID = 256, 257, 258
VOCAB_SIZE = 259
MAX_POSITIONS = 512

# `content` may be a string, null or a list of parts; a model of text reads the text parts.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{% set content = message['content'] %}"
    "{{ message['role'] | capitalize }}: "
    "{% if content is string %}{{ content | trim }}"
    "{% elif content %}{% for part in content %}{{ part['text'] | default('') | trim }}{% endfor %}"
    "{% endif %}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant: ' }}{% endif %}"
)


def byte_alphabet() -> list[str]:
    """The printable character that stands for each byte 0..255 in byte-level tokenizers (GPT-2's mapping).

    Bytes that print in Latin-1 stand for themselves, the others take the characters from U+0100 on, in order.
    """
    plain = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    spare = iter(range(0x100, 0x200))
    return [chr(byte) if byte in plain else chr(next(spare)) for byte in range(256)]


def build_tokenizer() -> "PreTrainedTokenizerFast":
    """The tokenizer; `save_pretrained` makes a directory that `AutoTokenizer` loads offline.

    `encode` puts <s> in front unless told otherwise; `decode` gives the bytes read as UTF-8, with U+FFFD for
    what is not valid, such as half a character at a stream's end.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {character: byte for byte, character in enumerate(byte_alphabet())}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    raw.add_special_tokens([BOS, EOS, PAD])
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer
