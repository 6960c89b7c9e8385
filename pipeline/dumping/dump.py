"""The dump: shards are given to an engine, and the store is finalised when all are written."""

from collections.abc import Iterator, Mapping, Sequence
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
from pipeline.errors import FD3DError, counted
from pipeline.expert import build_adapter
from pipeline.files import file_sha256
from pipeline.models.build import load_config
from pipeline.models.pairs import check_data
from store_schema import OtherStoreError, StoreWriter, open_storage
from store_schema.manifest import made_by, refuse_difference
from store_schema.provenance import check_markers, found_maker
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
        FD3DError: bad input, more queries to keep than the expert has, ``settings.autocast`` without a GPU, features that are
            not finite (with the frame's token), no query that reaches ``focal.min_score``, or the cluster is gone.
        OtherStoreError: the store was made by another expert, config or index, or by code that made other values.
        StoreError: the store is being written, other library versions wrote a part of it, a token or scene does not fit,
            or the disk is full.
    """
    cluster = cluster or ClusterSettings()
    if cluster.address is None:  # workers at an address have devices of their own, and refuse by themselves
        check_precision(settings)
    storage = open_storage(out)
    if not cluster.in_process:  # workers have working folders of their own
        checkpoint = checkpoint and checkpoint.absolute()
        source = replace(source, index=source.index.absolute(), root=source.root.absolute())
    cfg = load_config(config)
    build_adapter(cfg)  # a config without one is refused before anything starts
    check_queries(cfg, settings.rule.num_queries, cfg.filename)
    index, rows, tokens = frames_to_dump(source, scenes, settings)
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
            if not replace_other and (held := made_by(storage)) is not None:  # before codes are learned for it
                refuse_difference(held, writer.manifest, storage, "delete the store or choose another folder")
            writer.outdated = outdated_by(engine, job, writer, constants)
            if writer.outdated is not None and not replace_other:
                raise writer.outdated
            check_any_cell(engine, job, writer)
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


def check_precision(settings: DumpSettings) -> None:
    """Refuse a precision that this machine does not compute in.

    Raises:
        FD3DError: ``settings.autocast`` is set, and there is no GPU.
    """
    if settings.autocast and not torch.cuda.is_available():
        raise FD3DError(
            f"dump.autocast is {settings.autocast} but there is no GPU; set it to null for float32 on a CPU"
        )


def check_place(storage: Storage, manifest: dict[str, Any], replace_other: bool) -> None:
    """Refuse a store that cannot be written, before the expert is loaded.

    Args:
        manifest: what makes the store, as far as it is known without the expert's outputs.
        replace_other: whether a store that another dump made is replaced.

    Raises:
        OtherStoreError: another expert, config or index made the store, or an earlier revision; or its markers are gone.
        StoreError: another process writes the store, the place cannot be written, or it has other files and no store.
    """
    with storage.lock():
        storage.check_writable()
        try:
            held, _ = found_maker(storage)
        except OtherStoreError:
            if not replace_other:
                raise
            return
    if held is not None and not replace_other:
        known = {key: held[key] for key in manifest if key in held}
        wanted = {key: continued(storage, manifest)[key] for key in known}
        refuse_difference(known, wanted, storage, "delete the store or choose another folder")
        check_markers(storage)


def continued(storage: Storage, manifest: dict[str, Any]) -> dict[str, Any]:
    """The manifest, with the name that the config's file had where the store of the same config was begun."""
    held, expert = made_by(storage), manifest["expert"]
    made = held.get("expert") if held is not None else None
    # of a recipe that somebody edited the rest is compared, and told
    if not isinstance(made, Mapping) or not isinstance(made.get("config"), str):
        return manifest
    same = made.get("config_sha256") == expert.get("config_sha256", "")
    return manifest | {"expert": expert | {"config": made["config"]}} if same else manifest


def check_any_cell(engine: Engine, job: Job, writer: StoreWriter) -> None:
    """Refuse an expert none of whose queries would have a stored cell in any frame, before another store is deleted for it.

    Frames may be empty, even many: the search goes on until one is not, and costs a frame where the first one is not. A store
    that has cells already is not looked for.

    Raises:
        FD3DError: naming the setting and the highest score.
    """
    least, finished = job.settings.rule.min_score, {} if writer.outdated else writer.finished()
    counts = join_counts(marker["sums"]["coverage"] for marker in finished.values())
    if job.settings.layout == "dense" or any(entry["cells"][1] for entry in counts.values()):
        return
    known = {name for shard in finished for name in writer.plan[shard]}  # they have no cell
    # of a finished store without a cell the frames are run once more, for their highest score
    left = {name: scene for name, scene in writer.scenes.items() if name not in known} or writer.scenes
    some = sample_frames(left, job.settings.code_frames)
    scenes = [*some, *(scene for scene in map(list, left.values()) if scene not in some)]
    if engine.look(job, writer.schema, [scenes[0][:1]], lambda frames: None) is None:
        return
    progress = Progress(total := sum(map(len, scenes)), 0, "frame looked at")
    with progress.bar:
        highest = engine.look(job, writer.schema, scenes, lambda frames: progress(0, frames))
    if highest is None:
        return
    if highest == 0:
        raise FD3DError(
            f"no query of {counted(total, 'frame')} that could be stored has a score above 0, so the store would have no cell: the expert "
            "detects nothing; look at the expert (is it trained? does its detector drop low scores?)"
        )
    reached = (
        f"the highest is {highest:.3g}" if highest < least else f"those that do, up to {highest:.3g}, are seen nowhere"
    )
    raise FD3DError(
        f"no query of {counted(total, 'frame')} that could be stored has a score that reaches focal.min_score, {least:g}: {reached}, so the store "
        "would have no cell; look at the expert (is it trained?), or lower focal.min_score and distill.rule.min_score"
    )


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
