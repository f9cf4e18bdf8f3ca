"""Small tokenizers of the three usual kinds, and chat templates with the habits that make label masks hard."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

CORPUS = [
    "What is shown in this picture? A red cup stands on the desk. Where is the cup?",
    "user assistant system Answer briefly. There is none. [0.120,0.034,0.500,0.750]",
    "この写真には何が写っていますか。赤いカップが机の上にあります。傷はどこですか。",
] * 4

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEMPLATES = {
    "chatml": CHATML,
    # Llama 3: strips, and begins with a token of its own
    "stripping": "{{ '<s>' }}" + CHATML.replace("m['content']", "m['content'] | trim"),
    # SmolLM2, Qwen 2: a system message where there is none
    "default system": "{% if messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe good.<|im_end|>\n' }}{% endif %}" + CHATML,
    # Llama 2, Mistral: the turn ends after a space; no generation prompt
    "brackets": "{{ '<s>' }}{% for m in messages %}{% if m['role'] == 'assistant' %}{{ ' ' + m['content'] + ' </s>' }}"
    "{% else %}{{ '[INST] ' + m['content'] + ' [/INST]' }}{% endif %}{% endfor %}",
    # Qwen 3: no prefix property; thinking is shown for the last turn only, and an empty one is put into it
    "thinking": "{% for m in messages %}{% set c = m['content'].split('</think>')[-1].lstrip('\n') %}"
    "{{ '<|im_start|>' + m['role'] + '\n' }}"
    "{% if m['role'] == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{{ c + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    # a generation prompt that is not what comes before answers
    "other prompt": CHATML.replace(
        "'<|im_start|>assistant\n' }}{% endif %}", "'<|im_start|>assistant: ' }}{% endif %}"
    ),
}
SPECIALS = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|reserved|>"]


@lru_cache(maxsize=8)
def _object(kind: str) -> str:
    if kind == "fallback":
        tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        alphabet = [f"<0x{i:02X}>" for i in range(256)]
        trainer = trainers.BpeTrainer(
            special_tokens=["<unk>", *SPECIALS, *alphabet], vocab_size=380, show_progress=False
        )
        tokenizer.train_from_iterator([line.replace("写真傷机", "") for line in CORPUS[:2]], trainer)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
        return str(tokenizer.to_str())
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if kind == "trimming":
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        vocab_size=420,
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return str(tokenizer.to_str())


def make(kind: str = "bytes", template: str | None = "chatml", **options: Any) -> PreTrainedTokenizerFast:
    """A tokenizer: "bytes" (GPT-2's way), "trimming" (offsets without white space), or "fallback" (Llama 2's way)."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_object(kind)),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<|im_end|>" if template is not None and template != "brackets" else "</s>",
        **options,
    )
    if kind == "fallback":  # special tokens have to survive the prepended mark
        tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken(s, normalized=False) for s in SPECIALS]})
    tokenizer.chat_template = TEMPLATES[template] if template is not None else None
    return tokenizer
