"""``inspect``: what a store holds, in words and as a picture of a frame."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError


def inspect(
    store: Annotated[Path, typer.Argument(help="Folder of a finished store.")],
    token: Annotated[str | None, typer.Option(help="Frame to draw; the first by default.")] = None,
    index: Annotated[Path | None, typer.Option(help="Frame index, needed to draw.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root, needed to draw.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG of a frame: cameras with the expert's boxes, BEV energy, focal cells.")
    ] = None,
    min_score: Annotated[float, typer.Option(help="Draw queries from this score on.")] = 0.3,
) -> None:
    """Print arrays, bytes, manifest and coverage of a store; with --out draw a frame."""
    from store_schema import StoreReader, describe

    reader = StoreReader(store)
    rows = describe(store)
    print(f"{'array':30} {'shape':34} {'dtype':8} {'on disk':>10} {'raw':>12}")
    for row in rows:
        print(
            f"{row['array']:30} {str(row['shape']):34} {row['dtype']:8} {row['bytes'] / 1e6:8.2f}MB {row['raw_bytes'] / 1e6:10.2f}MB"
        )
    total = sum(row["bytes"] for row in rows)
    print(f"\n{len(reader.tokens)} frames, {total / 1e6:.1f} MB, {total / 1e6 / len(reader.tokens):.3f} MB per frame")
    for name, share in reader.manifest["coverage"].items():
        print(f"stored cells of {name}: {100 * share:.1f} %")
    for name in ("expert", "data", "image", "history", "coordinates", "focal", "libraries"):
        print(f"{name}: {reader.manifest[name]}")
    if out is None:
        return
    if index is None or root is None:
        raise FD3DError("drawing a frame needs --index and --root")
    _draw(reader, token or reader.tokens[0], index, root, out, min_score)
    print(f"drew {token or reader.tokens[0]} to {out}")


def _draw(reader, token: str, index: Path, root: Path, out: Path, min_score: float) -> None:  # type: ignore[no-untyped-def]
    import cv2
    import numpy as np

    from pipeline.data.index import FrameIndex
    from pipeline.figures import beside, bev_figure, camera_sheet, stored_energy

    frame = FrameIndex.load(index, root)
    frame_ = frame[frame.row(token)]
    stored = reader.read(token)
    boxes = stored["query/boxes"][stored["query/score"] >= min_score]
    truth = np.nan_to_num(frame_.boxes)
    sheet = camera_sheet(root, frame_, [(truth, (80, 220, 80)), (boxes, (255, 80, 60))])
    energy = stored_energy(stored, reader.schema.bev[:2]) if reader.schema.bev else None
    extent = reader.manifest["coordinates"]["pc_range"][3]
    layers = {"annotated": (truth, "limegreen"), "expert": (boxes, "tomato")}
    drawing = beside(sheet, bev_figure(layers, extent, energy, None if energy is None else np.isfinite(energy)))
    out.parent.mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(out), drawing[..., ::-1]):
        raise FD3DError(f"{out} cannot be written; give a .png path in a writable folder")
