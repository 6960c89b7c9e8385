"""The page: payload, script and style in one HTML file."""

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from pipeline.data.index import FrameIndex
from pipeline.errors import FD3DError, counted
from pipeline.files import write_atomically
from pipeline.viewer.colours import FeatureScales
from pipeline.viewer.payload import frame_payload, page_facts, stored_bev
from store_schema import StoreReader

MAX_BYTES = 200_000_000
"""A browser keeps the whole page in memory, several times over."""


def write_page(
    reader: StoreReader, index: FrameIndex, root: Path, tokens: Sequence[str], out: Path, min_score: float, width: int
) -> int:
    """Write a page of frames, read from a file:// address.

    Args:
        tokens: frames in the page's order.
        min_score: start of the score slider.
        width: largest width of the images, pixels.

    Returns:
        size of the page, bytes.

    Raises:
        FD3DError: a frame is not in the index, an image is missing, the page would pass ``MAX_BYTES``, or it cannot be
            written.
        StoreError: a shard is missing or damaged.
    """
    frames = [index[index.row(token)] for token in tokens]
    scales = None
    if reader.schema.bev:
        scales = FeatureScales.fit(stored_bev(reader.read(token))[0] for token in tokens)
    facts, texts, size = page_facts(reader, scales, min_score), [], 0
    for frame in frames:
        texts.append(_json(frame_payload(reader, frame, root, scales, width)))
        size += len(texts[-1])
        if size > MAX_BYTES:
            raise FD3DError(
                f"a page of {counted(len(frames), 'frame')} takes more than {MAX_BYTES / 1e6:.0f} MB "
                f"({size / 1e6 / len(texts):.1f} MB a frame); lower --frames or choose with --scene or --token"
            )
    parts = {name: files(__package__).joinpath(f"page.{name}").read_text("utf-8") for name in ("html", "css", "js")}
    page = parts["html"].replace("@css@", parts["css"]).replace("@js@", parts["js"])
    # the payload last: nothing in it is taken for a placeholder
    page = page.replace("@payload@", f'{{"store":{_json(facts)},"frames":[{",".join(texts)}]}}')
    write_atomically(out, lambda file: file.write(page))
    return len(page.encode())


def _json(value: Any) -> str:
    """JSON that no browser takes for markup."""
    return json.dumps(value, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
