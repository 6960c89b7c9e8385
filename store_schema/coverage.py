"""How much of the maps a store has."""

import numpy as np
import zarr

from .layout import StoreLayout
from .storage import Storage


def stored_shares(storage: Storage, layout: StoreLayout) -> dict[str, float]:
    """Share of each map's cells that are stored, over all frames; empty for whole maps.

    Raises:
        StoreError: the counts cannot be read.
    """
    schema = layout.schema
    if schema.layout != "focal":
        return {}
    cells = {"bev": schema.bev_cells} if schema.bev else {}
    cells |= {f"pv/{i}": n for i, n in enumerate(schema.pv_cells)}
    store, frames, shares = storage.zarr_store(), sum(map(len, layout.scenes.values())), {}
    for name, total in cells.items():
        with storage.named():
            counts = np.asarray(zarr.open_array(store, path=f"{name}/count", mode="r")[:])
        shares[name] = round(float(counts.sum()) / (frames * total), 5)
    return shares
