"""The arithmetic of a step: one pass edits each of some tokens once, all at one layer; pure functions of tensors.

What is added is computed in float32 and rounded to the type of `hidden`: the sum of two tensors of one type reads and
writes memory once, where a sum in float32 takes three passes over it.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch

BLOCK = 256  # tokens at a time: what is computed for them stays in a processor's cache


@dataclass
class GateState:
    """Lets an edit through where the stream's projection on a direction, after block `layer`, exceeds a threshold.

    Tokens of the pass without a gate are let through. `open` is set when the layer is passed, in the same step.
    """

    layer: int
    tokens: torch.Tensor | slice  # of the whole pass
    rows: torch.Tensor  # [n] int64, of the vector table
    above: torch.Tensor  # [n, 1] float32
    gated: torch.Tensor  # [n, 1] bool
    open: torch.Tensor | None = None  # [n, 1] bool

    def evaluate_gate(self, table: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        along = (residual_stream(hidden, residual, self.tokens) * table[self.rows]).sum(-1, keepdim=True)
        self.open = (along > self.above) | ~self.gated


@dataclass
class EditPass:
    """Flat tokens and what happens to each: h ← h + (a + b · (h·v̂)) v̂ where low < h·v̂ < high."""

    tokens: torch.Tensor | slice  # [n] int64, or a slice where they lie side by side
    which: torch.Tensor | None  # [n] int64, each token's edit; None where all are edited alike, by the only one
    rows: torch.Tensor  # [n_edits] int64, of the vector table
    a: torch.Tensor  # [n_edits, 1] float32
    b: torch.Tensor | None  # [n, 1] float32; None when no token's projection is needed
    n: int  # of tokens
    bounds: tuple[torch.Tensor, torch.Tensor] | None = None  # low and high, [n, 1] each; None: no bounds
    rescale: torch.Tensor | None = None  # [n, 1] bool: the edited stream keeps its length
    gates: tuple[GateState, ...] = ()  # one for each layer that is looked at
    vectors: torch.Tensor | None = None  # [n_edits, d_model]: a · v̂ in the type of `hidden`; v̂ in float32 where b is

    def apply(self, table: torch.Tensor, hidden: torch.Tensor, residual: torch.Tensor | None) -> bool:
        """Edit `hidden` [n_tokens, d_model] in place; hidden + residual is the stream. table: [n_rows, d_model].

        False, and nothing is edited, if the layer of a gate was passed over.
        """
        if any(gate.open is None for gate in self.gates):
            return False
        if self.vectors is None:
            own = table[self.rows]
            self.vectors = own if self.b is not None else (self.a * own).to(hidden.dtype)
        if isinstance(self.tokens, slice) and self.n > BLOCK:
            for first in range(0, self.n, BLOCK):
                self._tail_from(self.tokens.start, first)._edit_block(hidden, residual)
        else:
            self._edit_block(hidden, residual)
        return True

    def _tail_from(self, start: int, first: int) -> "EditPass":
        """The block of tokens from the first-th on."""
        n = min(BLOCK, self.n - first)

        def of(values: Any) -> Any:
            return None if values is None else values[first : first + n]

        return replace(
            self,
            tokens=slice(start + first, start + first + n),
            which=of(self.which),
            b=of(self.b),
            n=n,
            bounds=None if self.bounds is None else (of(self.bounds[0]), of(self.bounds[1])),
            rescale=of(self.rescale),
            gates=tuple(replace(gate, open=of(gate.open)) for gate in self.gates),
        )

    def _edit_block(self, hidden: torch.Tensor, residual: torch.Tensor | None) -> None:
        vectors: torch.Tensor = self.vectors  # type: ignore[assignment]
        if self.which is not None:  # each token's own side by side, in the cache, before they meet `hidden`
            vectors = vectors.index_select(0, self.which)
        if self.b is None:
            added = vectors
        else:
            before = residual_stream(hidden, residual, self.tokens)
            along = (before * vectors).sum(-1, keepdim=True)
            a = self.a if self.which is None else self.a[self.which]
            amount = a + self.b * along
            if self.bounds is not None:
                low, high = self.bounds
                amount = torch.where((along > low) & (along < high), amount, 0.0)
            for gate in self.gates:
                amount = torch.where(gate.open, amount, 0.0)  # type: ignore[arg-type]
            added = amount * vectors
            if self.rescale is not None:
                added = torch.where(self.rescale, _same_length(before, before + added) - before, added)
        part = hidden[self.tokens]
        part += added.to(hidden.dtype)
        if not isinstance(self.tokens, slice):  # a copy
            hidden[self.tokens] = part


def residual_stream(hidden: torch.Tensor, residual: torch.Tensor | None, tokens: torch.Tensor | slice) -> torch.Tensor:
    """The residual stream at some tokens, float32 [n, d_model]."""
    part = hidden[tokens].float()
    return part if residual is None else part + residual[tokens].float()


def _same_length(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """`after` at the length of `before`, [n, d_model]; what has become zero stays zero."""
    length = after.norm(dim=-1, keepdim=True)
    return after * torch.where(length > 0, before.norm(dim=-1, keepdim=True) / length.clamp_min(1e-30), 0.0)
