# SPDX-License-Identifier: Apache-2.0
"""Rows of different lengths in either of two forms: padded (B, T) tensors, and torch's jagged nested tensors (B, T_i).

Both are flat entries, row after row, and B + 1 offsets. What is here works on these, never on a tensor of rows x
longest, and takes rows one by one only to copy them. It keeps no graph for gradients. Arithmetic between jagged tensors
themselves needs the very same offsets object, and torch's own sum over a row pads it first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from torch import Tensor

# Entries that are worked on at a time: float64 copies and the like of so many stay in a core's cache.
BLOCK = 1 << 17

IntArray = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rows:
    """The entries of B rows.

    Attributes:
        flat: (N,) entries, row after row.
        offsets: (B + 1,) where each row begins, and N.
        width: T of a padded tensor; None for a jagged one.
    """

    flat: Tensor
    offsets: IntArray
    width: int | None = None

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        """The rows of a padded (B, T) tensor or of a jagged (B, T_i) one; a view of its entries where that can be.

        Raises:
            ValueError: a jagged tensor whose rows do not follow on each other, as ``torch.nested.narrow`` makes them.
        """
        if x.is_nested:
            if x.lengths() is not None:  # type: ignore[attr-defined]
                raise ValueError("a jagged tensor with holes between its rows; make a contiguous one of it")
            return cls(x.values(), x.offsets().cpu().numpy())  # type: ignore[attr-defined]
        rows, width = x.shape
        return cls(x.reshape(-1), np.arange(rows + 1) * width, width)

    @property
    def tensor(self) -> Tensor:
        """In the form that it came in."""
        if self.width is None:
            return jagged(self.flat, self.offsets)
        return self.flat.reshape(len(self.offsets) - 1, self.width)

    @property
    def lengths(self) -> IntArray:
        """(B,) entries of each row, padding included."""
        return np.diff(self.offsets)

    def holding(self, flat: Tensor) -> Rows:
        """Rows of the same lengths with other entries (N,)."""
        return Rows(flat, self.offsets, self.width)

    def blocks(self, size: int = BLOCK) -> Iterator[tuple[slice, slice]]:
        """Parts of whole rows with about ``size`` entries: which rows, which entries."""
        row, last = 0, len(self.offsets) - 1
        while row < last:
            end = int(np.searchsorted(self.offsets, self.offsets[row] + size, side="right")) - 1
            end = max(row + 1, min(end, last))
            yield slice(row, end), slice(int(self.offsets[row]), int(self.offsets[end]))
            row = end

    def without_last(self) -> Rows:
        """A copy without the last entry of each row; every row has one."""
        flat = _cut(self.flat.detach(), self.offsets[:-1], self.offsets[1:] - 1)
        return Rows(flat, starts(self.lengths - 1), None if self.width is None else self.width - 1)

    def last(self, lengths: IntArray) -> Rows:
        """A copy of the last (B,) ``lengths`` entries of each row, which has as many; jagged."""
        return Rows(_cut(self.flat.detach(), self.offsets[1:] - lengths, self.offsets[1:]), starts(lengths))

    def after(self, first: Tensor) -> Rows:
        """A copy with an entry more in front of each row: (B,) ``first``, of the same dtype."""
        joined = np.insert(_array(self.flat.detach().cpu()), self.offsets[:-1], _array(first.detach().cpu()))
        flat = torch.from_numpy(joined).view(self.flat.dtype).to(self.flat.device)
        return Rows(flat, starts(self.lengths + 1), None if self.width is None else self.width + 1)

    def reduce(self, function: np.ufunc, nothing: float = 0.0, **options: Any) -> npt.NDArray[Any]:
        """(B,) ``function`` (``np.add``, ``np.maximum``, ...) over each row; ``nothing`` for a row without entries."""
        entries = (self.flat.float() if self.flat.dtype == torch.bfloat16 else self.flat).numpy()
        some = self.offsets[1:] > self.offsets[:-1]
        if not some.any():
            return np.full(len(some), nothing, dtype=options.get("dtype", entries.dtype))
        found = function.reduceat(entries, self.offsets[:-1][some], **options)
        if some.all():
            return found
        filled = np.full(len(some), nothing, dtype=found.dtype)
        filled[some] = found
        return filled


def jagged(flat: Tensor, offsets: IntArray) -> Tensor:
    """(B, T_i) jagged tensor of ``flat`` (N,) entries, which it does not copy.

    It is told the longest row: else torch would take N for it when it pads.
    """
    lengths = np.diff(offsets)
    shortest, longest = (int(lengths.min()), int(lengths.max())) if len(lengths) else (0, 0)
    bounds = torch.from_numpy(np.ascontiguousarray(offsets)).to(flat.device)
    return torch.nested.nested_tensor_from_jagged(flat, bounds, min_seqlen=shortest, max_seqlen=longest)


def of_rows(rows: Sequence[Tensor]) -> Tensor:
    """(B, T_i) jagged tensor of B rows of one dtype, (T_i,) each; a copy."""
    lengths = np.fromiter(map(len, rows), dtype=np.int64, count=len(rows))
    return jagged(_joined(rows, empty(int(lengths.sum()), rows[0].dtype, rows[0].device)), starts(lengths))


def pad(x: Tensor, fill: float = 0) -> Tensor:
    """(B, T) of a jagged tensor, ``fill`` behind each row; a padded one as it is. For small batches."""
    return x.to_padded_tensor(fill) if x.is_nested else x


def unpad(x: Tensor, like: Tensor) -> Tensor:
    """The (B, T) ``x`` with rows as long as those of ``like``: jagged if that is."""
    if not like.is_nested:
        return x
    return of_rows([row[:length] for row, length in zip(x, Rows.of(like).lengths.tolist(), strict=True)])


def starts(lengths: IntArray) -> IntArray:
    """(B + 1,) offsets of rows of these lengths (B,)."""
    return np.concatenate([[0], np.cumsum(lengths)])


def spread(numbers: Tensor, lengths: IntArray) -> Tensor:
    """(N,) each of the (B,) ``numbers`` as often as its row has entries."""
    if numbers.device.type != "cpu":
        return numbers.repeat_interleave(torch.from_numpy(lengths).to(numbers.device))
    # as numpy copies runs of one number, ten times as fast
    return torch.from_numpy(np.repeat(_array(numbers.detach()), lengths)).view(numbers.dtype)


def by_row(numbers: Tensor, like: Tensor) -> Tensor:
    """(B, T) or (B, T_i) as ``like``: each of the (B,) ``numbers`` at all entries of its row."""
    rows = Rows.of(like)
    return rows.holding(spread(numbers, rows.lengths)).tensor


def everywhere(mask: Tensor) -> bool:
    """Whether all of a (N,) bool mask is True."""
    return bool(mask.numpy().all() if mask.device.type == "cpu" else mask.all())


def inside(flat: Tensor, mask: Tensor) -> Tensor:
    """The entries of ``flat`` (N,) where ``mask`` (N,) is True; itself if that is everywhere."""
    if everywhere(mask):
        return flat
    if flat.device.type != "cpu":
        return flat[mask.to(flat.device)]
    return torch.from_numpy(_array(flat)[mask.numpy()]).view(flat.dtype)


def clear_(flat: Tensor, mask: Tensor) -> Tensor:
    """``flat`` (N,), 0 from now on where ``mask`` (N,) is False."""
    if everywhere(mask):
        return flat
    if flat.device.type != "cpu":
        return flat.masked_fill_(~mask, 0)
    entries = _array(flat)
    np.copyto(entries, entries.dtype.type(0), where=~mask.numpy())
    return flat


def last_token(mask: Tensor) -> IntArray:
    """(B,) the place of each row's last entry that is not 0, counted from 1; 0 where there is none."""
    rows = Rows.of(mask)
    flat, ends = rows.flat.cpu().numpy(), rows.offsets[1:]
    last = rows.lengths
    some = np.flatnonzero(last > 0)
    # most responses end with a token of the policy; of the others the end is searched
    for row in some[flat[ends[some] - 1] == 0].tolist():
        found = np.flatnonzero(flat[rows.offsets[row] : ends[row]])
        last[row] = found[-1] + 1 if len(found) else 0
    return last


def first_entries(x: Tensor) -> Tensor:
    """(B,) the first entry of each row; every row has one."""
    rows = Rows.of(x)
    return rows.flat[torch.from_numpy(rows.offsets[:-1]).to(rows.flat.device)]


def tokens_of(mask: Tensor) -> IntArray:
    """(B,) how many entries of each row are not 0."""
    rows = Rows.of(mask)
    flat = rows.flat.bool().cpu()
    if everywhere(flat):
        return rows.lengths
    return rows.holding(flat.view(torch.int8)).reduce(np.add, dtype=np.int32).astype(np.int64)


def empty(size: int, dtype: torch.dtype, device: torch.device | None = None) -> Tensor:
    """(size,) uninitialised. numpy asks for huge pages, torch does not: they take half the time to write."""
    if device is not None and device.type != "cpu":
        return torch.empty(size, dtype=dtype, device=device)
    return torch.from_numpy(np.empty(size, dtype=_array(torch.empty(0, dtype=dtype)).dtype)).view(dtype)


def zeros(size: int, dtype: torch.dtype) -> Tensor:
    """(size,) zeros in memory that is not there before somebody writes to it: most of it stays as it is."""
    return torch.from_numpy(np.zeros(size, dtype=_array(torch.empty(0, dtype=dtype)).dtype)).view(dtype)


def converted(flat: Tensor, dtype: torch.dtype) -> Tensor:
    """``flat`` (N,) in another dtype."""
    return flat if flat.dtype == dtype else empty(len(flat), dtype, flat.device).copy_(flat)


def _cut(flat: Tensor, begins: IntArray, ends: IntArray) -> Tensor:
    """The entries of (B,) pieces. Copying whole pieces is as fast as copying can be: half a microsecond for each."""
    pieces = list(zip(begins.tolist(), ends.tolist(), strict=True))
    if flat.device.type != "cpu" or not pieces:
        return torch.cat([flat[:0], *(flat[begin:end] for begin, end in pieces)])
    entries = _array(flat)
    return torch.from_numpy(np.concatenate([entries[begin:end] for begin, end in pieces])).view(flat.dtype)


def _joined(pieces: Sequence[Tensor], out: Tensor) -> Tensor:
    return torch.cat(tuple(pieces), out=out) if len(pieces) else out


def _array(flat: Tensor) -> npt.NDArray[Any]:
    """A view for numpy, which copies and selects several times as fast; it knows no bfloat16, and gets its bits."""
    return (flat.view(torch.int16) if flat.dtype == torch.bfloat16 else flat).numpy()
