"""The dump: shards are given to an engine, and the store is finalised when all are written."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pipeline.data.images import check_images
from pipeline.data.made_for import check_queries
from pipeline.data.source import FrameSource
from pipeline.dumping.coverage import join_counts
from pipeline.dumping.early import frames_to_dump
from pipeline.dumping.engine import Engine, InProcess, Progress
from pipeline.dumping.learning import sample_frames
from pipeline.dumping.moments import join_moments
from pipeline.dumping.recipe import library_versions, make_manifest
from pipeline.dumping.session import Job, shard_tokens
from pipeline.dumping.settings import ClusterSettings, DumpSettings
from pipeline.dumping.shared import LEARNING, Shared, learning_sha256, source_sha256
from pipeline.dumping.unchanged import outdated_by
from pipeline.errors import FD3DError
from pipeline.expert import build_adapter
from pipeline.files import file_sha256
from pipeline.models.build import load_config
from pipeline.models.pairs import check_data
from store_schema import OtherStoreError, StoreWriter, open_storage
from store_schema.manifest import made_by, refuse_difference
from store_schema.storage import Storage


def make_engine(cluster: ClusterSettings) -> Any:
    """Engine of the settings, a context manager."""
    if cluster.in_process:
        return InProcess()
    from pipeline.dumping.cluster import DaskEngine  # dask takes a second to import

    return DaskEngine(cluster)


def dump(
    config: Path,
    checkpoint: Path | None,
    source: FrameSource,
    out: str | Path | Storage,
    settings: DumpSettings,
    workers: int = 1,
    scenes: Sequence[str] | None = None,
    cluster: ClusterSettings | None = None,
    replace_other: bool = False,
    allow_versions: bool = False,
) -> dict[str, Any]:
    """Write the store; a killed dump goes on with the shards that are missing.

    Args:
        checkpoint: the expert's checkpoint; None runs random weights, which the manifest records.
        out: folder or URL.
        workers: processes that decode images; on a cluster threads of each worker.
        scenes: names of the scenes to dump; None dumps all.
        cluster: processes that run the expert; default: this process.
        replace_other: delete a store that another expert, config or index made, with a warning that says what differs;
            otherwise such a store is refused.
        allow_versions: continue a store that other library versions wrote a part of; its manifest lists all versions.

    Returns:
        ``frames``, their number, and ``coverage``, counts of the focal areas (:mod:`pipeline.dumping.coverage`).

    Raises:
        FD3DError: bad input, more queries to keep than the expert has, ``settings.autocast`` without a GPU, features that are not finite (with the frame's token), or the cluster is gone.
        OtherStoreError: the store was made by another expert, config or index, or by code that made other values.
        StoreError: the store is being written, other library versions wrote a part of it, a token or scene does not fit,
            or the disk is full.
    """
    cluster = cluster or ClusterSettings()
    # workers at an address have devices of their own, and refuse by themselves
    if settings.autocast and cluster.address is None and not torch.cuda.is_available():
        raise FD3DError(
            f"dump.autocast is {settings.autocast} but there is no GPU; set it to null for float32 on a CPU"
        )
    storage = open_storage(out)
    if not cluster.in_process:  # workers have working folders of their own
        checkpoint = checkpoint and checkpoint.absolute()
        source = replace(source, index=source.index.absolute(), root=source.root.absolute())
    cfg = load_config(config)
    build_adapter(cfg)  # a config without one is refused before anything starts
    check_queries(cfg, settings.rule.num_queries, cfg.filename)
    index, rows, tokens = frames_to_dump(source, scenes, settings.frames_per_shard)
    here = checkpoint if checkpoint is not None and checkpoint.is_file() else None  # one may lie on the workers alone
    check_data(cfg, here, index, source.root)
    if cluster.address is None:  # workers at an address may have the only copy of the images
        check_images(index, source.root, rows, source.index)
    versions = tuple(library_versions().items())
    shared = None
    if not cluster.in_process:
        files = [(source.index, index.sha256)]
        if checkpoint is not None and checkpoint.is_file():  # a worker says that it is not there
            files.append((checkpoint, file_sha256(checkpoint)))
        shared = Shared(tuple(files), source_sha256())
    job = Job(cfg.pretty_text, checkpoint, source, settings, cluster.threads_per_worker, workers, versions, shared)
    manifest = None
    if checkpoint is None or checkpoint.is_file():
        manifest = make_manifest(cfg, config, checkpoint, index, source, settings)
        check_place(storage, manifest, replace_other)
    with make_engine(cluster) as engine:
        schema, constants = engine.probe(job, next(iter(tokens.values()))[0])
        made = make_manifest(cfg, config, checkpoint, index, source, settings)
        if manifest is not None and made["expert"] != manifest["expert"]:
            raise FD3DError(f"checkpoint {checkpoint} was replaced while the expert was loaded; run the dump again")
        manifest = continued(storage, made)
        size = settings.frames_per_shard
        writer = StoreWriter(storage, schema, manifest, tokens, size, allow_versions=allow_versions)
        # from the comparison on, so that no other dump puts another store there meanwhile
        with writer.locked():
            writer.outdated = outdated_by(engine, job, writer, constants)
            if writer.outdated is not None and not replace_other:
                raise writer.outdated
            constants |= learned(engine, job, writer, settings)  # before another store is deleted
            with opened(writer, replace_other):
                writer.write_constants(constants, learning_sha256() if schema.code is not None else None)
                pending = writer.pending()
                total = sum(map(len, tokens.values()))
                progress = Progress(total, total - sum(len(shard_tokens(writer.shards, shard)) for shard in pending))
                with progress.bar:
                    engine.run(job, writer.shards, pending, progress)
                sums = writer.sums()
                writer.finalise(join_moments(shard["moments"] for shard in sums))
    return {"frames": total, "coverage": join_counts(shard["coverage"] for shard in sums)}


def check_place(storage: Storage, manifest: dict[str, Any], replace_other: bool) -> None:
    """Refuse a store that cannot be written, before the expert is loaded.

    Args:
        manifest: what makes the store, as far as it is known without the expert's outputs.
        replace_other: whether a store that another dump made is replaced.

    Raises:
        OtherStoreError: another expert, config or index made the store.
        StoreError: another process writes the store, or the place cannot be written.
    """
    with storage.lock():
        held = made_by(storage)
    if held is not None and not replace_other:
        known = {key: held[key] for key in manifest if key in held}
        wanted = {key: continued(storage, manifest)[key] for key in known}
        refuse_difference(known, wanted, storage, "delete the store or choose another folder")


def continued(storage: Storage, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, with the name that the config's file had where the store of the same config was begun."""
    held, expert = made_by(storage), manifest["expert"]
    same = held is not None and held.get("expert", {}).get("config_sha256") == expert.get("config_sha256", "")
    return manifest | {"expert": expert | {"config": held["expert"].get("config")}} if held and same else manifest


def learned(engine: Engine, job: Job, writer: StoreWriter, settings: DumpSettings) -> dict[str, np.ndarray]:
    """Constants of the codes: those that the store has, or learned now; none where features are not coded."""
    schema = writer.schema
    if schema.code is None:
        return {}
    if writer.outdated is None and (held := writer.constants()) is not None:
        if (by := writer.learned_by()) != learning_sha256():
            tqdm.write(
                f"warning: codes of {writer.storage} were learned by another version of {' or '.join(LEARNING)} ({(by or 'unknown')[:12]}, now "
                f"{learning_sha256()[:12]}); they are kept; delete the store to learn them anew"
            )
        return {path: array for path, array in held.items() if path.startswith("code/")}
    scenes = sample_frames(writer.scenes, settings.code_frames)
    progress = Progress(sum(map(len, scenes)), 0, "frame of the codes")
    with progress.bar:
        return engine.learn(job, schema, scenes, lambda frames: progress(0, frames))


@contextmanager
def opened(writer: StoreWriter, replace_other: bool) -> Iterator[None]:
    """A store open for writing; one that another dump made is deleted first where ``replace_other`` says so.

    Raises:
        OtherStoreError: another dump made the store, and ``replace_other`` is not set.
    """

    def tell(error: OtherStoreError) -> None:
        tqdm.write(
            f"warning: {writer.storage} was made with {error.field} = {error.stored}, now it is {error.wanted}: it is deleted"
        )

    writer.replacing = tell if replace_other else None
    with writer:
        yield
