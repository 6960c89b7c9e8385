"""``inspect``: what a store holds, in words, as a picture of a frame, and as a page to look through frames."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.errors import FD3DError

if TYPE_CHECKING:
    from store_schema import StoreReader


def inspect(
    store: Annotated[str, typer.Argument(help="Folder or URL of a finished store.")],
    index: Annotated[Path | None, typer.Option(help="Frame index, needed to draw.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root, needed to draw.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to look through frames; one file, no server.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG of a frame: cameras with the expert's boxes, BEV energy, focal cells.")
    ] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Show a scene's frames; may be repeated.")] = None,
    token: Annotated[list[str] | None, typer.Option(help="Show this frame; may be repeated.")] = None,
    frames: Annotated[int, typer.Option(help="Most frames of a page.")] = 40,
    width: Annotated[int, typer.Option(help="Images of a page are at most this wide, pixels.")] = 640,
    min_score: Annotated[
        float, typer.Option(help="Draw queries from this score on; a page's slider starts there.")
    ] = 0.3,
) -> None:
    """Print arrays, bytes, coverage and manifest of a store; draw a frame (--out) or a page of frames (--html)."""
    from store_schema import StoreReader

    reader = StoreReader(store)
    print("\n".join([*table(reader), "", *manifest_lines(reader.manifest)]))
    if html is None and out is None:
        return
    if index is None or root is None:
        raise FD3DError("drawing frames needs --index and --root")

    from pipeline.data.index import FrameIndex
    from pipeline.viewer import choose_frames, write_page

    known = FrameIndex.load(index, root)
    chosen, more = choose_frames(reader, scene, token, frames)
    if out is not None:
        _draw(reader, chosen[0], known, root, out, min_score)
        print(f"drew {chosen[0]} to {out}")
    if html is not None:
        size = write_page(reader, known, root, chosen, html, min_score, width)
        print(f"{html}: {len(chosen)} frames, {size / 1e6:.1f} MB; open it in a browser")
        if more:
            print(f"{more} more frames are not on the page; choose with --scene or --token, or raise --frames")


def table(reader: "StoreReader") -> list[str]:
    """Lines of the table of arrays.

    ``raw`` is what the stored cells and the frames take uncompressed, without padding; ``ratio`` is raw over disk.
    """
    from store_schema import describe

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
    total = f"{frames} frames in {len(reader.manifest['scenes'])} scenes, {stored / 1e6 / frames:.3f} MB per frame"
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
    """What made a store: a heading per section, a line per entry."""
    from store_schema.manifest import MADE_BY

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


def _draw(reader: "StoreReader", token: str, index: Any, root: Path, out: Path, min_score: float) -> None:
    import cv2
    import numpy as np

    from pipeline.figures import beside, bev_figure, camera_sheet, stored_energy

    frame = index[index.row(token)]
    stored = reader.read(token)
    boxes = stored["query/boxes"][stored["query/score"] >= min_score]
    truth = np.nan_to_num(frame.boxes)
    sheet = camera_sheet(root, frame, [(truth, (80, 220, 80)), (boxes, (255, 80, 60))])
    energy = stored_energy(stored, reader.schema.bev[:2]) if reader.schema.bev else None
    extent = reader.manifest["coordinates"]["pc_range"][3]
    layers = {"annotated": (truth, "limegreen"), "expert": (boxes, "tomato")}
    drawing = beside(sheet, bev_figure(layers, extent, energy, None if energy is None else np.isfinite(energy)))
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), drawing[..., ::-1]):
        raise FD3DError(f"{out} cannot be written; give a .png path in a writable folder")
