"""Quality of qtk's GGUF beside llama.cpp's own Q4_0 of the same float model, both run by llama.cpp, in one run.

python bench/compare_gguf.py FLOAT INT4 [--rows 12] [--seq-len 256] [--threads 2] [--json FILE]

INT4 is what `qtk quantize FLOAT -o INT4 --container gguf` wrote. llama.cpp's file is made here by its own quantizer from a
float16 GGUF of FLOAT, embedding and head left at float16 as in ours, so that both have the same bytes. KL divergence from
the float16 file in nats a token, perplexity and top-1 agreement, on held-out code and English that nothing was
calibrated on; the error of the KL is that of its mean over rows. Needs llama_cpp and gguf.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import tempfile
from collections.abc import Iterator
from pathlib import Path

import llama_cpp
import numpy as np
import torch

from qtk.bench.held_out_rows import held_out_rows
from qtk.bench.options import CODE, ENGLISH
from qtk.models.tokenizer import TextTokenizer
from qtk.quantization.formats.gguf import write_gguf
from qtk.quantization.model_weights import ModelWeights

GGML_TYPE_F16 = 1


def requantized(source: Path, target: Path, threads: int) -> Path:
    """llama.cpp's own Q4_0 of a float16 file, its embedding and head kept as they are."""
    settings = llama_cpp.llama_model_quantize_default_params()
    settings.nthread = threads
    settings.ftype = llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0
    settings.token_embedding_type = GGML_TYPE_F16
    settings.output_tensor_type = GGML_TYPE_F16
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(settings)):
        raise SystemExit(f"llama.cpp could not quantize {source}")
    return target


def log_probabilities(path: Path, rows: list[list[int]], threads: int) -> Iterator[torch.Tensor]:
    """log p [tokens, vocabulary] of each row by llama.cpp."""
    longest = max(map(len, rows))
    # Repacked for AMX, llama.cpp 0.3.36 ends in a segmentation fault on some virtual machines.
    llama_cpp.llama_cpp.llama_model_default_params = _as_stored
    model = llama_cpp.Llama(
        str(path), n_ctx=longest, n_batch=longest, n_threads=threads, logits_all=True, verbose=False
    )
    for row in rows:
        model.reset()
        model.eval(row)
        yield torch.log_softmax(torch.from_numpy(np.asarray(model.scores[: len(row)])).double(), dim=1)


_DEFAULTS = llama_cpp.llama_cpp.llama_model_default_params


def _as_stored() -> llama_cpp.llama_model_params:
    settings = _DEFAULTS()
    settings.use_extra_bufts = False
    return settings


def measured(reference: Path, path: Path, rows: list[list[int]], threads: int) -> dict[str, float]:
    """KL with its error, perplexity and top-1 agreement of `path` against `reference`."""
    kls, losses, agreements = [], [], []
    pairs = zip(log_probabilities(reference, rows, threads), log_probabilities(path, rows, threads), rows, strict=True)
    for expected, got, row in pairs:
        kls.append(float((expected.exp() * (expected - got)).sum(1)[:-1].mean()))
        losses.append(float(-got[:-1].gather(1, torch.tensor(row[1:])[:, None]).mean()))
        agreements.append(float((expected.argmax(1) == got.argmax(1))[:-1].float().mean()))
    return {
        "kl": float(np.mean(kls)),
        "kl_error": float(np.std(kls, ddof=1) / math.sqrt(len(kls))),
        "perplexity": math.exp(float(np.mean(losses))),
        "top1": float(np.mean(agreements)),
    }


def main() -> None:
    """Makes the files, measures them and prints the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("float_model", type=Path)
    parser.add_argument("int4_model", type=Path)
    parser.add_argument("--rows", type=int, default=12)
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    asked = parser.parse_args()
    results = []
    with tempfile.TemporaryDirectory() as work:
        reference = Path(work) / "float16.gguf"
        write_gguf(ModelWeights.open(asked.float_model), reference)
        files = {
            "llama.cpp Q4_0": requantized(reference, Path(work) / "q4_0.gguf", asked.threads),
            "qtk": asked.int4_model / "model.gguf",
        }
        print(f"{'text':<24}{'file':<18}{'MB':>8}{'KL':>10}{'+-':>9}{'ppl':>9}{'top-1':>8}")
        for text in (CODE, ENGLISH):
            held_out = held_out_rows(text, TextTokenizer(asked.float_model), asked.rows, asked.seq_len)
            rows = [held_out.tokens[i, : int(n)].tolist() for i, n in enumerate(held_out.lengths)]
            for name, path in {"float16": reference, **files}.items():
                result = measured(reference, path, rows, asked.threads)
                size = path.stat().st_size / 1e6
                results.append({"text": text, "file": name, "megabytes": size, "rows": len(rows), **result})
                numbers = f"{result['kl']:>10.4f}{result['kl_error']:>9.4f}{result['perplexity']:>9.3f}"
                print(f"{text:<24}{name:<18}{size:>8.1f}{numbers}{result['top1']:>8.3f}", flush=True)
    if asked.json:
        asked.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
