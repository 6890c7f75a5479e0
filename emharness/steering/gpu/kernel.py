"""One decoder block's edits and recordings on a GPU: one launch whose arguments never change, as CUDA graphs need.

Each program takes one token and reads what to do from buffers that `device_plan.py` writes before the forward pass. A
token whose slot is 0 costs one load, one whose request has nothing to do at this layer four. What a request records is
summed in memory of its own, whose addresses are in a buffer too; tokens of one step are added in any order.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from emharness.steering.gpu import edit_program
from emharness.steering.gpu.buffers import Layout

LOOK, KEEP = tl.constexpr(edit_program.LOOK), tl.constexpr(edit_program.KEEP)
GATED, RECALL = tl.constexpr(edit_program.GATED), tl.constexpr(edit_program.RECALL)
BOUNDED, RESCALE = tl.constexpr(edit_program.BOUNDED), tl.constexpr(edit_program.RESCALE)
AWAITS, ENTRY = tl.constexpr(edit_program.AWAITS), tl.constexpr(edit_program.ENTRY)


@triton.jit
def _trigger_kernel(
    ids,  # [n_tokens] int32
    slots,  # [n_tokens] int32, 0: nothing to do
    positions,  # [n_tokens] int32
    rows,  # [n_slots, width] int32: see `buffers.Layout`
    width,
    began,  # where a row has the positions after the tokens that edits wait for, and behind them these tokens
    n_edits,
    BLOCK: tl.constexpr,
):
    """Each program looks at one token of the step, for all edits of its request."""
    token = tl.program_id(0)
    slot = tl.load(slots + token)
    if slot > 0:
        edits = rows + slot.to(tl.int64) * width + began + tl.arange(0, BLOCK)
        waits = tl.load(edits + n_edits) == tl.load(ids + token)
        after = tl.load(positions + token) + 1
        tl.atomic_min(edits, tl.zeros([BLOCK], dtype=tl.int32) + after, mask=waits, sem="relaxed")


@triton.jit
def _steer_kernel(
    hidden,  # [n_tokens, d_model], edited in place
    residual,  # the same shape; hidden + residual is the stream
    slots,  # [n_tokens] int32, 0: nothing to do
    positions,  # [n_tokens] int32
    recorded,  # [n_tokens] int32: which of its request's recorded positions it is, counted from 1; 0: of none
    rows,  # [n_slots, width] int32: see `buffers.Layout`; words of an entry: bits, row, start, end, gate
    floats,  # the same memory as float32; numbers of an entry: a (of a look: the threshold), b, low, high
    address,  # [1] int64, of the directions [n_rows, d_model] float32
    opened,  # [n_tokens, n_gates] int8
    memory,  # [n_slots, 6] int64: addresses of total, last, axes, along of its `Recording`; n layers, n vectors
    counted,  # [n_slots, n_layers] int32: entries done and residuals recorded, over tokens
    depth,  # [] int32: the layer
    n_layers,
    width,
    n_gates,
    d_model,
    hidden_stride,
    residual_stride,
    SUMMED: tl.constexpr,
    BLOCK: tl.constexpr,
):
    token = tl.program_id(0).to(tl.int64)
    slot = tl.load(slots + token)
    if slot > 0:
        layer = tl.load(depth)
        row_of = slot.to(tl.int64) * width
        begin = tl.load(rows + row_of + layer)
        end = tl.load(rows + row_of + layer + 1)
        tap = tl.load(rows + row_of + n_layers + 1 + layer)
        began = rows + row_of + 2 * n_layers + 1
        take = tl.load(recorded + token, mask=tap > 0, other=0)
        if (begin < end) | (take > 0):
            position = tl.load(positions + token)
            lanes = tl.arange(0, BLOCK)
            inside = lanes < d_model
            place = hidden + token * hidden_stride + lanes
            h = tl.load(place, mask=inside, other=0.0).to(tl.float32)
            rest = tl.zeros([BLOCK], dtype=tl.float32)
            if SUMMED:
                rest += tl.load(residual + token * residual_stride + lanes, mask=inside, other=0.0).to(tl.float32)
            directions = tl.load(address).to(tl.pointer_type(tl.float32))
            done = 0
            seen = 0
            for entry in range(begin, end):
                at = row_of + 2 * n_layers + 1 + 2 * n_gates + entry * ENTRY
                word = rows + at
                number = floats + at + 5
                bits = tl.load(word)
                row = tl.load(word + 1).to(tl.int64)
                awaits = (bits & AWAITS) != 0
                begins = tl.load(began + tl.load(word + 4), mask=awaits, other=0)
                begins = tl.where(awaits, begins, tl.load(word + 2))
                active = (position >= begins) & (position < tl.load(word + 3))
                remembered = opened + token * n_gates + tl.load(word + 4)
                v = tl.load(directions + row * d_model + lanes, mask=inside, other=0.0)
                a = tl.load(number)
                before = h + rest
                along = tl.sum(before * v, axis=0)
                looks = (bits & LOOK) != 0
                above = (along > a).to(tl.int32)
                tl.store(remembered, above.to(tl.int8), mask=active & looks & ((bits & KEEP) != 0))
                held = tl.load(remembered, mask=active & ((bits & RECALL) != 0), other=1).to(tl.int32)
                within = (along > tl.load(number + 2)) & (along < tl.load(number + 3))
                acts = active & (looks == 0) & (within | ((bits & BOUNDED) == 0)) & (held != 0)
                acts = acts & ((seen != 0) | ((bits & GATED) == 0))
                amount = tl.where(acts, a + tl.load(number + 1) * along, 0.0)
                after = before + amount * v
                length = tl.sqrt(tl.sum(after * after, axis=0))
                kept = tl.where(length > 0, tl.sqrt(tl.sum(before * before, axis=0)) / tl.maximum(length, 1e-30), 0.0)
                edited = tl.where((bits & RESCALE) != 0, after * kept - rest, h + amount * v)
                h = tl.where(acts, edited, h)
                seen = tl.where(looks, above, seen)
                done += active.to(tl.int32)
            tl.store(place, h.to(hidden.dtype.element_ty), mask=inside)
            if take > 0:
                own = memory + slot.to(tl.int64) * 6
                stream = h.to(hidden.dtype.element_ty).to(tl.float32) + rest
                sums = (tap.to(tl.int64) - 1) * d_model + lanes
                total = tl.load(own).to(tl.pointer_type(tl.float32))
                last = tl.load(own + 1).to(tl.pointer_type(tl.float32))
                tl.atomic_add(total + sums, stream, mask=inside, sem="relaxed")
                tl.store(last + sums, stream, mask=inside)
                n_tapped = tl.load(own + 4)
                n_vectors = tl.load(own + 5).to(tl.int32)
                axes = tl.load(own + 2).to(tl.pointer_type(tl.float32)) + (tap.to(tl.int64) - 1) * n_vectors * d_model
                along = tl.load(own + 3).to(tl.pointer_type(tl.float32))
                along += ((take.to(tl.int64) - 1) * n_tapped + tap - 1) * n_vectors
                for vector in range(n_vectors):
                    axis = tl.load(axes + vector * d_model + lanes, mask=inside, other=0.0)
                    tl.store(along + vector, tl.sum(stream * axis, axis=0))
            tl.atomic_add(counted + slot * n_layers + layer, done + (take > 0).to(tl.int32))


def launch_kernel(grid: tuple[int], args: tuple[Any, ...], summed: bool, block: int) -> None:
    options: dict[str, Any] = {"SUMMED": summed, "BLOCK": block, "num_warps": min(16, max(1, block // 512))}
    _steer_kernel[grid](*args, **options)


def steer_tokens(
    hidden: torch.Tensor, residual: torch.Tensor | None, number: torch.Tensor, buffers: Any, n_layers: int, d_model: int
) -> None:
    """Edit `hidden` [n_tokens, d_model] in place and record it as the buffers (`buffers.Buffers`) say."""
    args = (
        *(hidden, hidden if residual is None else residual, *buffers.tokens),
        *(buffers.rows, buffers.floats, buffers.address, buffers.opened, buffers.memory, buffers.counted),
        *(number, n_layers, buffers.rows.shape[1], buffers.opened.shape[1], d_model),
        *(hidden.stride(0), 0 if residual is None else residual.stride(0)),
    )
    launch_kernel(
        (min(hidden.shape[0], buffers.tokens.shape[1]),), args, residual is not None, triton.next_power_of_2(d_model)
    )


def launch_triggers(ids: torch.Tensor, buffers: Any) -> None:
    """Begin the edits whose token is among a step's `ids`, int32 [n_tokens]."""
    n_edits = buffers.opened.shape[1]
    slots, positions, _ = buffers.tokens
    began = Layout(buffers.counted.shape[1]).began
    _trigger_kernel[(len(ids),)](
        ids, slots, positions, buffers.rows, buffers.rows.shape[1], began, n_edits, BLOCK=n_edits
    )
