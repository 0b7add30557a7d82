"""How many multiplications a block of a quantization takes: what its time is held against, and predicted from."""

from __future__ import annotations

from dataclasses import dataclass

from qtk.models.spec import Linear, ModelSpec
from qtk.quantization.memory_need import Work


@dataclass(frozen=True)
class Products:
    """Multiply-adds of one block, by what they are for. A Hessian counts half of its products, a triangle the half that is
    not zero."""

    forward: float
    hessians: float
    drift: float
    cholesky: float
    correction: float
    rounding: float

    @property
    def total(self) -> float:
        return self.forward + self.hessians + self.drift + self.cholesky + self.correction + self.rounding


def block_products(spec: ModelSpec, work: Work) -> Products:
    """Those of GPTQ at the efforts fast and default; of the other methods the forward pass alone."""
    streams = 2 if work.effort == "default" and work.method != "awq" else 1
    tokens = float(work.tokens)
    weights = sum(linear.out_features * linear.in_features for linear in spec.linears())
    attention = tokens * work.seq_len * spec.num_heads * spec.head_dim
    forward = streams * (tokens * weights + attention) if work.method != "rtn" else 0.0
    if work.method not in ("gptq", "auto"):
        return Products(forward, 0.0, 0.0, 0.0, 0.0, 0.0)
    sets: dict[str, list[Linear]] = {}
    for linear in spec.linears():
        sets.setdefault(linear.reads, []).append(linear)
    hessians = drift = cholesky = correction = rounding = 0.0
    for members in sets.values():
        n, rows = float(members[0].in_features), float(sum(member.out_features for member in members))
        hessians += tokens * n * n / 2
        cholesky += n**3 / 6
        rounding += rows * n * n / 2
        if streams == 1:
            continue
        if len(members) == 1 and 2 * rows < n:
            drift += 2 * tokens * rows * n
            correction += rows * n * n
        else:
            drift += tokens * n * n
            correction += n**3 + rows * n * n
    return Products(forward, hessians, drift, cholesky, correction, rounding)
