"""Arrays of a store: what one is, and those that hold a map's focal cells."""

from dataclasses import dataclass, field
from typing import Any

from .codes import Code, flat_name

CHUNK_CELLS = 1024
CHUNK_CODES = 4096
"""Cells of a chunk of codes, which are a few bytes each."""
# Cell numbers and affine maps are small, so more of them make a chunk: a sixteenth of a row, of which focal areas fill
# one or two. Whole rows would be mostly padding to decode.
CHUNKS_OF_NUMBERS = 16


@dataclass(frozen=True)
class ArraySpec:
    """One array of the store.

    Attributes:
        shape: without the leading frame dimension for arrays with ``per_frame``.
        dims: names of ``shape``'s dimensions.
        chunk: shape of a chunk within ``shape``; a chunk never spans two frames.
        kind: ``values`` (focal cells), ``affine`` (their maps), ``index``, ``count`` or ``plain``.
    """

    path: str
    shape: tuple[int, ...]
    dims: tuple[str, ...]
    dtype: str
    chunk: tuple[int, ...]
    kind: str = "plain"
    units: str = ""
    about: str = ""
    attributes: dict[str, Any] = field(default_factory=dict)


def focal_arrays(
    name: str,
    kmax: int,
    channels: int,
    cells: int,
    formula: str,
    values: str,
    code: Code | None,
    stride: list[float] | None = None,
) -> list[ArraySpec]:
    """Per-frame arrays of a map's stored cells.

    Args:
        name: of the map, ``bev`` or ``pv/LEVEL``.
        kmax: most cells that a frame can store.
        cells: cells of the whole map.
        formula: of a cell's number.
        values: precision of the features, or how they are coded.
        code: of coded features.
        stride: rows and columns of pixels to a cell of a pyramid level.
    """
    dim = flat_name(name) + "_cell"
    attributes = {"cells": cells} | ({"stride": stride} if stride else {})
    chunk = min(CHUNK_CELLS, kmax)
    numbers = max(chunk, -(-kmax // CHUNKS_OF_NUMBERS))
    about, columns, dtype = "expert features of the stored cells", channels, values
    coded: dict[str, Any] = {}
    if code is not None:
        chunk, columns, dtype = min(CHUNK_CODES, kmax), code.bytes, "uint8"
        about, coded = f"codes of the {about}", {"decoded": code.recipe(name)}
    elif values == "uint8":
        about, coded = about + ", coded", {"decoded": f"{name}/affine[.., 0] * values + {name}/affine[.., 1]"}
    specs = [
        ArraySpec(
            f"{name}/values",
            (kmax, columns),
            (dim, f"{flat_name(name)}_{'code' if code else 'channel'}"),
            dtype,
            (chunk, columns),
            "values",
            about=about,
            attributes=attributes | coded,
        )
    ]
    if values == "uint8":
        specs.append(
            ArraySpec(
                f"{name}/affine",
                (kmax, 2),
                (dim, "affine"),
                "float32",
                (numbers, 2),
                "affine",
                about="scale and offset of the stored cells: feature = scale * value + offset",
                attributes=attributes | {"affine": ["scale", "offset"]},
            )
        )
    index = ArraySpec(
        f"{name}/index",
        (kmax,),
        (dim,),
        "uint16" if cells <= 2**16 else "uint32",
        (numbers,),
        "index",
        about=f"flat cell number: {formula}",
        attributes=attributes,
    )
    count = ArraySpec(
        f"{name}/count",
        (),
        (),
        "int32",
        (),
        "count",
        about="stored cells; the rest of a row is padding",
        attributes=attributes,
    )
    return [*specs, index, count]


def code_arrays(name: str, channels: int, code: Code) -> list[ArraySpec]:
    """Arrays without a frame dimension that decode a map's features, see :mod:`store_schema.codes`."""
    flat, rows = flat_name(name), code.parts(channels)
    specs = [
        ArraySpec(
            f"code/{flat}_basis",
            (rows, channels),
            (f"{flat}_part", f"{flat}_channel"),
            "float32",
            (rows, channels),
            about="rows that the parts of a code weigh",
        ),
        ArraySpec(f"code/{flat}_mean", (channels,), (f"{flat}_channel",), "float32", (channels,), about="mean feature"),
    ]
    if code.kind == "pq":
        shape = (code.bytes, 256, rows // code.bytes)
        specs.append(
            ArraySpec(
                f"code/{flat}_book",
                shape,
                (f"{flat}_code", "value", f"{flat}_entry"),
                "float32",
                shape,
                about="parts that each value of each byte of a code stands for",
            )
        )
    return specs
