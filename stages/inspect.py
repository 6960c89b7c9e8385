"""``inspect``: contents of a store, in words, as a picture of a frame, and as a page to look through frames."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.errors import FD3DError, counted


def inspect(
    store: Annotated[str, typer.Argument(help="Folder or URL of a finished store.")],
    index: Annotated[Path | None, typer.Option(help="Frame index, needed for drawings.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root, needed for drawings.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to look through frames; one file, no server.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="PNG of a frame: cameras with the expert's boxes, BEV energy, focal cells.")
    ] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Scene whose frames are shown, repeatable.")] = None,
    token: Annotated[list[str] | None, typer.Option(help="Frame to show, repeatable.")] = None,
    frames: Annotated[int, typer.Option(help="Largest number of frames on a page.")] = 40,
    width: Annotated[int, typer.Option(help="Largest width of a page's images, pixels.")] = 640,
    min_score: Annotated[
        float | None,
        typer.Option(
            help="Score from which queries are drawn, start of a page's slider; default: 0.3, of random weights 0."
        ),
    ] = None,
) -> None:
    """Print arrays, bytes, coverage and manifest of a store; draw a frame (--out) or a page of frames (--html)."""
    from pipeline.viewer.words import manifest_lines, table
    from store_schema import StoreReader

    reader = StoreReader(store)
    print("\n".join([*table(reader), "", *manifest_lines(reader.manifest)]))
    if html is None and out is None:
        return
    if index is None or root is None:
        raise FD3DError("drawing frames needs --index and --root")

    from pipeline.data.index import FrameIndex
    from pipeline.viewer.page import write_page
    from pipeline.viewer.payload import choose_frames, shown_score
    from pipeline.viewer.picture import draw_frame

    known = FrameIndex.load(index, root)
    known.check_made(reader.manifest, store)
    score = shown_score(reader) if min_score is None else min_score
    chosen, more = choose_frames(reader, scene, token, frames)
    if out is not None:
        draw_frame(reader, chosen[0], known, root, out, score)
        print(f"drew {chosen[0]} to {out}")
    if html is not None:
        size = write_page(reader, known, root, chosen, html, score, width)
        print(f"{html}: {counted(len(chosen), 'frame')}, {size / 1e6:.1f} MB; open it in a browser")
        if more:
            print(f"not on the page: {counted(more, 'more frame')}; choose with --scene or --token, or raise --frames")
