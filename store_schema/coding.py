"""Values of a frame as stored bits: limits of types, fixed-point positions, features as one byte each."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .codes import MapCode
from .errors import StoreError
from .schema import SAMPLING_RANGE, StoreSchema
from .specs import ArraySpec


def check_frame(schema: StoreSchema, token: str, frame: Mapping[str, NDArray[Any]]) -> None:
    """Refuse a frame that does not fit the schema, field by field.

    Raises:
        StoreError: a field is missing, unknown, no plain array, or has another shape, type or range; the message names
            frame and field.
    """
    keys = schema.frame_keys()
    for problem, names in (("lacks", keys - frame.keys()), ("has unknown", frame.keys() - keys)):
        if names:
            raise StoreError(
                f"frame {token} {problem} {', '.join(sorted(names))}; the schema wants {', '.join(sorted(keys))}"
            )
    for path, array in frame.items():  # all of them first: cell numbers are compared with the values of their map
        _check_plain(f"frame {token}: {path}", array)
    specs = schema.arrays()
    for path, array in frame.items():
        spec = specs[path]
        if spec.kind in ("values", "affine"):
            _check_focal(token, path, array, frame[f"{path.rsplit('/', 1)[0]}/index"], spec)
        elif spec.kind == "plain" and array.shape != spec.shape:
            raise StoreError(f"frame {token}: {path} has shape {array.shape}, expected {spec.shape}")
        # sampling locations are given as floating point and stored as fixed point
        dtype = "float32" if path == "query/sampling" else spec.dtype
        if spec.kind == "plain" and not dtype.startswith("float"):
            _check_whole(token, path, array, dtype)
        elif array.dtype.kind == "f":
            if not _fits(array, dtype):
                whole = np.isfinite(array).all()
                what = f"values beyond {dtype}'s {np.finfo(dtype).max:g}" if whole else "NaN or infinite values"
                raise StoreError(f"frame {token}: {path} holds {what}; nothing of its shard was written")
        elif dtype.startswith("float"):
            raise StoreError(f"frame {token}: {path} has type {array.dtype}, expected floating point")


def _check_plain(name: str, array: Any) -> None:
    """Refuse what is no array, and a masked one, whose checks leave out what lies under the mask and would be stored."""
    if isinstance(array, np.ma.MaskedArray):
        raise StoreError(f"{name} is a masked array, which stores have no mask for; give a plain one, such as filled()")
    if not isinstance(array, np.ndarray):
        raise StoreError(f"{name} is of type {type(array).__name__}, expected a NumPy array")


def _check_whole(token: str, path: str, array: NDArray[Any], dtype: str) -> None:
    """Refuse what an integer type would cut to fit."""
    if array.dtype.kind not in "iu":
        raise StoreError(f"frame {token}: {path} has type {array.dtype}, expected whole numbers")
    low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    if array.size and (int(array.min()) < low or int(array.max()) > high):
        odd = array[(array < low) | (array > high)][0]
        raise StoreError(f"frame {token}: {path} has {odd}, which {dtype} cannot hold ({low}..{high})")


def check_constants(schema: StoreSchema, constants: Mapping[str, NDArray[Any]]) -> None:
    """Refuse constants that do not fit the schema.

    Raises:
        StoreError: a constant is missing, unknown, no plain array, of another shape, or has values that its type cannot hold.
    """
    if unknown := sorted(constants.keys() - schema.constants().keys()):
        known = ", ".join(schema.constants()) or "none"
        raise StoreError(f"constant {unknown[0]} is not of the schema, which has {known}")
    for path, spec in schema.constants().items():
        array = constants.get(path)
        if array is not None:
            _check_plain(f"constant {path}", array)
        if array is None or array.shape != spec.shape:
            raise StoreError(
                f"constant {path} is {'nothing' if array is None else array.shape}, expected shape {spec.shape}"
            )
        if array.dtype.kind != "f" or not _fits(array, spec.dtype):
            raise StoreError(
                f"constant {path} has type {array.dtype} or values that are NaN, infinite or beyond {spec.dtype}; it is finite "
                "floating point"
            )


def _check_focal(token: str, path: str, values: NDArray[Any], index: NDArray[Any], spec: ArraySpec) -> None:
    kmax, channels = spec.shape
    if values.ndim != 2 or values.shape[1] != channels or index.shape != values.shape[:1]:
        raise StoreError(
            f"frame {token}: {path} has shape {values.shape} for {index.shape} cell numbers, expected (k, {channels}) and (k,)"
        )
    if spec.dtype == "uint8" and values.dtype != np.uint8:
        raise StoreError(
            f"frame {token}: {path} has type {values.dtype}, expected uint8; store_schema.quantise or the store's codes make it"
        )
    if len(values) > kmax:
        raise StoreError(
            f"frame {token}: {path} has {len(values)} cells, more than the capacity {kmax}; raise dump's capacity or lower the focal margins"
        )
    cells = spec.attributes["cells"]
    if len(index) and (
        index.dtype.kind not in "iu"
        or index.min() < 0
        or index.max() >= cells
        or (np.diff(index.astype(np.int64)) <= 0).any()
    ):
        raise StoreError(f"frame {token}: the cell numbers of {path} must rise strictly within 0..{cells - 1}")


def _fits(array: NDArray[Any], dtype: str) -> bool:
    """Whether floating point values are finite in the type that they are stored in."""
    if array.dtype == np.float16:  # on the bits: numpy's half precision is emulated
        return int((array.view(np.uint16) & 0x7FFF).max(initial=0)) < 0x7C00
    if dtype == "float16":  # from 65520 on values round to infinity; a comparison with NaN is false
        return bool(np.abs(array).max(initial=0) < 65520)
    with np.errstate(over="ignore"):
        return bool(np.isfinite(array.astype(np.float32, copy=False)).all())


def as_stored(path: str, spec: ArraySpec, array: NDArray[Any]) -> NDArray[Any]:
    """An array of a frame, given as the writer takes it, with the bits that are written."""
    if path == "query/sampling":
        return pack_sampling(array)
    if spec.kind != "values" or spec.dtype == "uint8":
        return array
    # -0.0 becomes 0.0, so that empty chunks stay empty; on the bits, since numpy's half precision is emulated
    stored = np.ascontiguousarray(array, spec.dtype)
    bits = stored.view(f"u{stored.itemsize}")
    sign = bits.dtype.type(1 << 8 * stored.itemsize - 1)
    negative = bits == sign
    return np.where(negative, bits.dtype.type(0), bits).view(spec.dtype) if negative.any() else stored


def pack_sampling(locations: NDArray[Any]) -> NDArray[Any]:
    """Locations as uint16 fixed point; locations beyond ``SAMPLING_RANGE`` are clipped."""
    low, high = SAMPLING_RANGE
    share: NDArray[np.float64] = (np.clip(locations.astype(np.float64), low, high) - low) / (high - low)
    packed: NDArray[np.uint16] = np.round(share * 65535).astype(np.uint16)
    return packed


def unpack_sampling(packed: NDArray[Any]) -> NDArray[Any]:
    """Locations as float32 from uint16 fixed point."""
    low, high = SAMPLING_RANGE
    return (packed * np.float64((high - low) / 65535) + low).astype(np.float32)


def quantise(values: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """Map the range of every cell's channels onto 0..255, rounding to the nearest.

    A cell errs by at most half of its ``scale``; one whose channels are all alike is kept exactly. NaN and infinite
    values end up in the map, where the writer refuses them.

    Args:
        values: (k, C) floating point.

    Returns:
        codes (k, C) uint8 and the map (k, 2) float32 of ``scale`` and ``offset``.
    """
    wide = values.astype(np.float32)
    with np.errstate(invalid="ignore", over="ignore"):
        offset = wide.min(1)
        scale = (wide.max(1) - offset) / np.float32(255)
        wide -= offset[:, None]
        wide /= np.where(scale > 0, scale, np.float32(1))[:, None]
        codes = np.minimum(np.rint(wide, out=wide), 255).astype(np.uint8)
    # adding zero turns -0.0 into 0.0
    return codes, np.stack([scale, offset], 1) + np.float32(0)


def dequantise(codes: NDArray[Any], affine: NDArray[Any]) -> NDArray[Any]:
    """Features (k, C) float32 from codes and map: the inverse of :func:`quantise`."""
    values = codes.astype(np.float32)
    values *= affine[:, :1]
    values += affine[:, 1:]
    return values


def decoded(frame: Mapping[str, NDArray[Any]], codes: Mapping[str, MapCode]) -> dict[str, NDArray[Any]]:
    """A frame with its coded features as float32; ``codes`` as of :attr:`StoreReader.codes`."""
    out = {path: array for path, array in frame.items() if not path.endswith("/affine")}
    for name, code in codes.items():
        out[f"{name}/values"] = code.decode(frame[f"{name}/values"])
    for path in frame.keys() - out.keys():
        values = path.replace("/affine", "/values")
        out[values] = dequantise(frame[values], frame[path])
    return out


def read_back(schema: StoreSchema, frame: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """The frame that ``read(token, decode=False)`` would give after ``frame`` was written."""
    specs = {path: spec for path, spec in schema.arrays().items() if spec.kind != "count"}
    out = {path: np.asarray(as_stored(path, spec, frame[path]), spec.dtype) for path, spec in specs.items()}
    if "query/sampling" in out:
        out["query/sampling"] = unpack_sampling(out["query/sampling"])
    return out
