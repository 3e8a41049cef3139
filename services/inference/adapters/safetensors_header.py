"""The header of a safetensors file, checked before any library maps the file."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from services.inference.adapters.digest import IntegrityError, opened

MAX_HEADER = 32 << 20
"""Bytes; the format allows 100 MB, which takes gigabytes to read, and 200,000 tensors take some 25."""
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32,
    "C64": 64, "F64": 64, "I64": 64, "U64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of one number of each type."""


_form = msgspec.json.Decoder(dict[str, dict[str, str | list[int]]]).decode


class Tensor(NamedTuple):
    """A tensor as the header has it: type, how many numbers, first byte and the one after its last, within the data."""

    dtype: str
    numbers: int
    begin: int
    end: int


def read_header(file: Path) -> dict[str, Tensor]:
    """Every tensor of the file by name. Raises IntegrityError when header and file do not fit each other, and OSError.

    As the format has it, the tensors fill the data from its beginning to its end without a gap, and none overlaps
    another.
    """
    with opened(file) as descriptor:
        size = os.fstat(descriptor).st_size
        length = int.from_bytes(os.pread(descriptor, 8, 0), "little")
        if size < 8 or length > min(MAX_HEADER, size - 8):
            raise _damaged(file, f"its header of {length} bytes does not fit into {size}")
        raw = os.pread(descriptor, length, 8)
    try:
        _form(raw)  # much sooner than the parser below, which would hold up this process with whatever it is given
        header = json.loads(raw, object_pairs_hook=_once)
        tensors = {name: _tensor(entry) for name, entry in header.items() if name != "__metadata__"}
    except (msgspec.MsgspecError, ValueError, RecursionError, AttributeError, TypeError, KeyError) as exc:
        raise _damaged(file, f"its header is not what the format wants: {exc}") from None
    end = 0
    for name, tensor in sorted(tensors.items(), key=lambda item: (item[1].begin, item[1].end)):
        if tensor.begin != end:
            raise _damaged(file, f"tensor '{name}' begins at {tensor.begin} instead of {end}")
        end = tensor.end
    if end != size - 8 - length:
        raise _damaged(file, f"its tensors end at {end} of {size - 8 - length} bytes of data")
    return tensors


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name appears twice")
    return found


def _tensor(entry: Any) -> Tensor:
    dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in BITS:
        raise ValueError(f"unknown type {dtype!r}")
    if not all(type(number) is int and 0 <= number < 1 << 63 for number in (*shape, begin, end)):
        raise ValueError("a shape or an offset is no whole number of at most 63 bits")
    count = math.prod(shape)
    if (end - begin) * 8 != count * BITS[dtype]:
        raise ValueError(f"{end - begin} bytes for {count} numbers of type {dtype}")
    return Tensor(dtype, count, begin, end)


def _damaged(file: Path, why: str) -> IntegrityError:
    return IntegrityError(f"{file}: is no sound safetensors file: {why}; fetch it anew")
