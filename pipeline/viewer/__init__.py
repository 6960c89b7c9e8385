"""One self-contained page to look through a store's frames: no server, no network."""

from .page import write_page
from .payload import choose_frames, frame_payload, page_facts

__all__ = ["choose_frames", "frame_payload", "page_facts", "write_page"]
