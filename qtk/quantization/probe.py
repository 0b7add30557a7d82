"""A few tokens on their way through the blocks as they are stored: recorded while quantizing, repeated on what was written.

Each block is computed from the recorded output of the block before it, in the same shapes both times: so a block whose files
hold other weights than those that were quantized differs by itself, and is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from qtk.calibration.rows import TokenRows
from qtk.models.forward import attention_mask, block_forward
from qtk.models.spec import ModelSpec
from qtk.quantization.generation_check import text_prompts
from qtk.quantization.model_weights import ModelWeights

PROBE_NAME = "probe.bin"
_TOKENS = 32  # of a row
# How far a token may move between two computations in one order of sums: the memory's alignment may choose other kernels.
_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 4e-3}


def probe_tokens(rows: TokenRows | None, spec: ModelSpec) -> torch.Tensor:
    """[rows, tokens] int64: the beginnings of a few calibration rows, or ids from all over the vocabulary without any."""
    if rows is None:
        return torch.linspace(0, spec.vocab_size - 1, _TOKENS // 2).long()[None]
    return torch.tensor(text_prompts(rows))[:, :_TOKENS]


@dataclass(frozen=True)
class Probe:
    """tokens: [rows, tokens] int64. dtype, device: of the computation. file: where the outputs of the blocks are recorded."""

    spec: ModelSpec
    tokens: torch.Tensor
    dtype: torch.dtype
    device: torch.device
    file: Path

    def record(self, layer: int, source: ModelWeights, weights: Mapping[str, torch.Tensor]) -> None:
        """Records what block `layer` with these weights makes of the recorded output of the block before it (of the
        embedding of `source`, for the first)."""
        output = self._output(layer, source, weights)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with open(self.file, "r+b" if self.file.exists() else "w+b") as file:
            file.seek(layer * self._bytes)
            file.write(output.cpu().contiguous().view(torch.uint8).numpy().tobytes())

    def difference(self, layer: int, source: ModelWeights, weights: Mapping[str, torch.Tensor]) -> float:
        """How far the block's output is from the recorded one: that of the token that moved most, as a share of its norm."""
        output, recorded = self._output(layer, source, weights).float(), self._recorded(layer).float()
        moved = torch.linalg.vector_norm(output - recorded, dim=-1)
        share = moved / torch.linalg.vector_norm(recorded, dim=-1).clamp_min(1e-30)
        return float(share.nan_to_num(torch.inf).max())

    @property
    def tolerance(self) -> float:
        """The difference from which on a block is another one than was recorded."""
        return _TOLERANCE[self.dtype]

    def last(self) -> torch.Tensor:
        """The recorded hidden states of each row's last token after the last block, [rows, hidden]."""
        return self._recorded(self.spec.num_layers - 1)[:, -1]

    def _output(self, layer: int, source: ModelWeights, weights: Mapping[str, torch.Tensor]) -> torch.Tensor:
        x = source.embed(self.tokens, self.dtype).to(self.device) if layer == 0 else self._recorded(layer - 1)
        cos, sin = (table.to(self.device) for table in self.spec.rope.tables(self.spec.head_dim, x.shape[1]))
        mask = attention_mask(x.shape[1], None, self.spec.windows[layer], self.device)
        return block_forward(self.spec, weights, x, cos, sin, mask=mask)

    def _recorded(self, layer: int) -> torch.Tensor:
        with open(self.file, "rb") as file:
            file.seek(layer * self._bytes)
            raw = torch.frombuffer(bytearray(file.read(self._bytes)), dtype=torch.uint8)
        return raw.view(self.dtype).view(*self.tokens.shape, self.spec.hidden_size).to(self.device)

    @property
    def _bytes(self) -> int:
        """Of one block's output."""
        return self.tokens.numel() * self.spec.hidden_size * self.dtype.itemsize
