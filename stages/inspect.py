"""``inspect``: contents of a store, in words, as a picture of a frame, and as a page to look through frames."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError, counted
from pipeline.files import check_writable
from pipeline.profile import read_profile
from store_schema import StoreReader


def inspect(
    store: Annotated[str, typer.Argument(help="Folder or URL of a finished store.")],
    index: Annotated[Path | None, typer.Option(help="Frame index for drawings; default: the profile's.")] = None,
    root: Annotated[Path | None, typer.Option(help="Data root for drawings; default: the profile's.")] = None,
    html: Annotated[Path | None, typer.Option(help="Page to look through frames; one file, no server.")] = None,
    out: Annotated[Path | None, typer.Option(help="PNG of a frame: cameras, boxes, BEV energy, focal cells.")] = None,
    scene: Annotated[list[str] | None, typer.Option(help="Scene whose frames are shown, repeatable.")] = None,
    token: Annotated[list[str] | None, typer.Option(help="Frame to show, repeatable.")] = None,
    frames: Annotated[int, typer.Option(help="Largest number of frames on a page.")] = 40,
    width: Annotated[int, typer.Option(help="Largest width of a page's images, pixels.")] = 640,
    min_score: Annotated[float | None, typer.Option(help="Least score drawn; default: 0.3, random weights: 0.")] = None,
    params: Annotated[Path, typer.Option(help="Profile, read for drawings.")] = Path("params.yaml"),
) -> None:
    """Print arrays, bytes, coverage and manifest of a store; draw a frame (--out) or a page of frames (--html)."""
    from pipeline.viewer.words import in_words

    if html is None and out is None:
        print(in_words(StoreReader(store)))
        return
    if index is None or root is None:
        if not params.is_file():
            raise FD3DError("drawing frames needs --index and --root, or a profile by --params")
        data = read_profile(params).data
        index, root = index or data.index, root or data.root
    known, reader = FrameIndex.load(index, root), StoreReader(store)
    known.check_made(reader.manifest, store)
    from pipeline.viewer.page import write_page
    from pipeline.viewer.payload import choose_frames, shown_score
    from pipeline.viewer.picture import draw_frame

    score = shown_score(reader) if min_score is None else min_score
    chosen, more = choose_frames(reader, scene, token, frames)
    for path in filter(None, (out, html)):
        check_writable(path)
    print(in_words(reader))
    if out is not None:
        draw_frame(reader, chosen[0], known, root, out, score)
        print(f"drew {chosen[0]} to {out}")
    if html is not None:
        size = write_page(reader, known, root, chosen, html, score, width)
        print(f"{html}: {counted(len(chosen), 'frame')}, {size / 1e6:.1f} MB; open it in a browser")
        if more:
            print(f"not on the page: {counted(more, 'more frame')}; choose with --scene or --token, or raise --frames")
