"""A tokenizer as SentencePiece models have it: a space belongs to the word behind it, and rare characters become bytes."""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer, decoders, models, normalizers


def write_word_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json as Llama 2 has it, with letters for words. Its decoder drops the first space of a text."""
    letters = "abcdefghijklmnopqrstuvwxyz():='"
    vocab = {"<unk>": 0, "<s>": 1, "</s>": 2}
    for piece in (*(f"<0x{byte:02X}>" for byte in range(256)), "▁", "▁▁", "▁▁▁▁", *letters):
        vocab[piece] = len(vocab)
    merges = [("▁", "▁"), ("▁▁", "▁▁")]
    model = models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.save(str(directory / "tokenizer.json"))
