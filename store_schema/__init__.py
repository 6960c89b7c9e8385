"""The contract between the pipeline's stages: a Zarr v3 store of expert targets that any Zarr tool opens.

The package needs numpy, zarr, numcodecs and google-crc32c only.
"""

from .codes import MapCode
from .coding import dequantise, quantise, read_back
from .describe import describe
from .errors import OtherStoreError, StoreError
from .reader import StoreReader
from .schema import SCHEMA_VERSION, StoreSchema
from .shards import ShardWriter
from .specs import ArraySpec
from .storage import open_storage
from .verify import Verification, verify
from .writer import StoreWriter

__all__ = [
    "SCHEMA_VERSION",
    "ArraySpec",
    "MapCode",
    "OtherStoreError",
    "ShardWriter",
    "StoreError",
    "StoreReader",
    "StoreSchema",
    "StoreWriter",
    "Verification",
    "dequantise",
    "describe",
    "open_storage",
    "quantise",
    "read_back",
    "verify",
]
