"""A store in words: arrays with their bytes, and the manifest."""

from typing import Any

from pipeline.errors import counted
from store_schema import StoreReader, describe
from store_schema.manifest import MADE_BY


def in_words(reader: StoreReader) -> str:
    """The table of arrays and the manifest."""
    return "\n".join([*table(reader), "", *manifest_lines(reader.manifest)])


def table(reader: StoreReader) -> list[str]:
    """Lines of the table of arrays.

    ``raw`` is what the stored cells and the frames take uncompressed, without padding; ``ratio`` is raw over disk.
    """
    frames, coverage = len(reader.tokens), reader.manifest["coverage"]
    head = ("array", "shape", "dtype", "raw MB", "on disk MB", "ratio", "stored cells")
    body, rows = [], describe(reader.storage)
    for row in rows:
        share = coverage.get(row["array"].rpartition("/")[0]) if row["array"].endswith("/values") else None
        body.append(_cells(row, None if share is None else f"{100 * share:.1f} %"))
    raw, stored = (sum(row[name] for row in rows) for name in ("raw_bytes", "bytes"))
    body.append(_cells({"array": "all", "shape": (), "dtype": "", "raw_bytes": raw, "bytes": stored}, None))
    widths = [max(len(line[i]) for line in (head, *body)) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(n) if i < 3 else cell.rjust(n) for i, (cell, n) in enumerate(zip(line, widths, strict=True))
        )
        for line in (head, *body)
    ]
    rule = "-" * len(lines[0])
    lines = [lines[0], rule, *lines[1:-1], rule, lines[-1]]
    total = f"{counted(frames, 'frame')} in {counted(len(reader.manifest['scenes']), 'scene')}, {stored / 1e6 / frames:.3f} MB per frame"
    return [*(line.rstrip() for line in lines), "", f"{total}, {reader.schema.layout} layout"]


def _cells(row: dict[str, Any], share: str | None) -> tuple[str, ...]:
    ratio = f"{row['raw_bytes'] / row['bytes']:.2f}" if row["bytes"] else ""
    shape = " x ".join(map(str, row["shape"]))
    return (
        row["array"],
        shape,
        row["dtype"],
        f"{row['raw_bytes'] / 1e6:.3f}",
        f"{row['bytes'] / 1e6:.3f}",
        ratio,
        share or "",
    )


def manifest_lines(manifest: dict[str, Any]) -> list[str]:
    """Lines of a manifest: a heading per section, a line per entry."""
    lines = []
    for section in MADE_BY:
        entries = manifest.get(section)
        if not isinstance(entries, dict):
            lines.append(f"{section}: {entries}")
            continue
        lines.append(section)
        widest = max(map(len, entries), default=0)
        lines += [f"  {name.ljust(widest)}  {_plain(value)}" for name, value in entries.items()]
    return lines


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_plain(inner)}" for name, inner in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
