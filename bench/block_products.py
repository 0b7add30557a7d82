"""The matrix products of one block of a quantization, timed alone: what the time of a block is held against.

python bench/block_products.py --shape 33b --tokens 4096 --effort default

A piece of each kind of product is timed in the shapes and by the calls in which qtk does it, and counted up to the whole
(`qtk/quantization/products.py`). Prints a line of JSON: seconds of processor time and multiply-adds of each kind, and in all.
With OMP_NUM_THREADS=1 that is to be held against the processor time of `bench/scale.py quantize`, also beside other work; threads
that wait for each other count as work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict

import torch
from scale import SHAPES, config

from qtk.machine import keep_freed_memory, limit_threads
from qtk.models.registry import spec_from_config
from qtk.quantization.memory_need import Work, chunk_tokens
from qtk.quantization.products import block_products

_TILE = 256  # columns of a step of a triangle


def _rate(work: Callable[[], object], products: float, times: int) -> float:
    """Multiply-adds a second of processor time, all threads together, of the fastest of several times: a second of a core that
    nobody else had."""
    work()
    best = float("inf")
    for _ in range(times):
        start = time.process_time()
        work()
        best = min(best, time.process_time() - start)
    return products / best


def rates(shape: str, tokens: int, times: int) -> dict[str, float]:
    """Of each kind of product, in the shapes of the block's widest set."""
    spec = spec_from_config(config(shape, 1), "config")
    n, rows = spec.intermediate_size, spec.hidden_size
    chunk = min(tokens, chunk_tokens(spec))
    x, y = torch.randn(chunk, n), torch.randn(chunk, rows)
    W, H = torch.randn(rows, n), torch.zeros(n, n)
    half, step = n // 2, 1024
    forward = _rate(lambda: torch.nn.functional.linear(x, W), chunk * n * rows, times)
    hessians = _rate(
        lambda: H[half : half + step, half:].addmm_(x[:, half : half + step].t(), x[:, half:]),
        chunk * min(step, n - half) * (n - half),
        times,
    )
    C = H[:rows]
    drift = _rate(lambda: C.addmm_(y.t(), x), chunk * n * rows, times)
    L = H[half:, :half]
    below = H[half:, half : half + _TILE]
    cholesky = _rate(lambda: below.addmm_(L, L[:_TILE].t(), alpha=-1), (n - half) * half * _TILE, times)
    strip = W[:, half : half + _TILE]
    correction = _rate(lambda: strip.addmm_(W[:, :half], L[:_TILE].t(), alpha=-1), rows * half * _TILE, times)
    Wt, M = torch.randn(n, rows), torch.randn(n - half, 128)
    D = Wt[:128]
    rounding = _rate(lambda: torch.addmm(D, M.t(), Wt[half:]), 128 * (n - half) * rows, times)
    return {
        "forward": forward,
        "hessians": hessians,
        "drift": drift,
        "cholesky": cholesky,
        "correction": correction,
        "rounding": rounding,
    }


def main() -> None:
    """Times, counts up, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--tokens", type=int, required=True, help="that the quantization reads")
    parser.add_argument("--seq-len", type=int, default=512)
    parser.add_argument("--effort", choices=("fast", "default"), default="default")
    parser.add_argument("--times", type=int, default=3)
    options = parser.parse_args()
    threads = limit_threads(None)
    keep_freed_memory()
    spec = spec_from_config(config(options.shape, 1), "config")
    work = Work("gptq", options.effort, options.tokens, options.seq_len, 4, 2)
    counted = asdict(block_products(spec, work))
    measured = rates(options.shape, options.tokens, options.times)
    seconds = {kind: counted[kind] / measured[kind] for kind in measured}
    print(
        json.dumps(
            {
                "shape": options.shape,
                "tokens": options.tokens,
                "effort": options.effort,
                "threads": threads,
                "products_cpu_seconds": round(sum(seconds.values()), 1),
                "cpu_seconds": {kind: round(value, 2) for kind, value in seconds.items()},
                "tera_products": {kind: round(value / 1e12, 3) for kind, value in counted.items()},
                "gflops": {kind: round(2 * value / 1e9, 1) for kind, value in measured.items()},
            }
        )
    )


if __name__ == "__main__":
    main()
