"""An expert and its student against each other, the data and the settings of dump and training, without running either."""

from dataclasses import replace

import torch
from mmdet3d.registry import MODELS
from mmengine.config import Config

from pipeline.checking.data import KnownData
from pipeline.cost.cameras import Cameras, rig_cameras
from pipeline.cost.early import check_grid, pyramid_of
from pipeline.cost.plan import expert_schema
from pipeline.data import CAMERAS
from pipeline.data.made_for import check_queries, check_views
from pipeline.distill.build import distiller_config
from pipeline.distill.planned import PlannedStore
from pipeline.distill.settings import FD3D, DistillSettings
from pipeline.dumping.dump import check_precision
from pipeline.errors import FD3DError
from pipeline.expert import build_adapter
from pipeline.expert.adapted import check_trainable
from pipeline.expert.declared import is_foreign
from pipeline.models.build import build_detector, load_config
from pipeline.models.checkpoints import converted, load_checkpoint
from pipeline.models.pairs import StudentPlan, check_rig, planned_student
from pipeline.models.pretrained import inherit_state
from pipeline.profile import Family, Profile
from pipeline.training.expert import check_student, check_told
from pipeline.training.hooks import check_start
from pipeline.training.run import check_course, check_machine
from pipeline.training.schedule import plan_course
from pipeline.training.settings import RunSettings, read_schedule
from store_schema import StoreError


def check_family(profile: Profile, pair: Family, data: KnownData | None) -> None:
    """:func:`check_pair`, with the family in messages.

    Raises:
        FD3DError: as of :func:`check_pair`.
    """
    try:
        check_pair(profile, pair, data)
    except (FD3DError, StoreError) as error:
        name = f"families.{pair.name}"
        raise FD3DError(str(error) if name in str(error) else f"{name}: {error}") from error


def check_pair(profile: Profile, pair: Family, data: KnownData | None) -> None:
    """Refuse a family whose expert, dump or trainings a later stage would refuse, as far as configs and starting files tell.

    Detectors are built and not run; those of other projects, whose maps only a run tells, are compared by the stage ``expert``.

    Args:
        data: what is known of the data; None where nothing is.

    Raises:
        FD3DError: naming the setting, the config or the checkpoint.
        StoreError: ``dump.code_bytes`` does not fit the expert's maps.
    """
    expert, student = pair.expert, pair.apprentice
    above, cfg = load_config(expert.config), load_config(student.config)
    build_adapter(above)
    check_queries(above, profile.dump.rule.num_queries, expert.config)
    if data is not None:
        check_rig(above, expert.checkpoint, data.cameras, data.reference)
        check_views(cfg, len(data.cameras), student.config)
    trained = expert.checkpoint is None
    trainings = [(cfg, student.train), *([(above, expert.train)] if trained else [])]
    for one, run in trainings:
        _check_training(one, run, data, profile.data.train)
    told = bool(expert.boxes or expert.classes)
    plan = StudentPlan.of(student.config, pair.distill)
    check_student(plan, expert.config, None if told else expert.checkpoint, pair.init("apprentice"))
    if trained:
        check_start(build_detector(above), pair.init("expert"))
        _check_inherited(plan, cfg, above)
    elif expert.checkpoint is not None and told:
        check_told(above, expert.checkpoint, expert.boxes, expert.classes)
        converted(expert.checkpoint, expert.config, expert.boxes or "auto", expert.classes)
    elif expert.checkpoint is not None:
        load_checkpoint(build_detector(above), expert.checkpoint, above.get("adapter"))
    if profile.cluster.address is None:
        check_precision(profile.dump)
    if not is_foreign(above):
        _check_store(profile, pair, above, cfg, data)


def check_methods(profile: Profile) -> None:
    """Refuse settings of a method that no family's student can be trained with; methods at their defaults are left alone.

    Raises:
        FD3DError: naming the setting; of several families as of the first.
    """
    for settings in profile.methods.values():
        if settings == type(settings)():
            continue
        refused: list[FD3DError] = []
        for pair in profile.families.values():
            try:
                planned_student(StudentPlan.of(pair.apprentice.config, settings), pair.expert.config)
            except FD3DError as error:
                refused.append(error)
        if len(refused) == len(profile.families):
            raise refused[0]


def _check_training(cfg: Config, run: RunSettings, data: KnownData | None, split: str) -> None:
    schedule = read_schedule(cfg)
    if is_foreign(cfg):
        check_trainable(cfg)
    check_machine(run)
    frames = None if data is None else data.frames
    if frames is not None or schedule.epochs is None or run.max_iters:
        check_course(plan_course(schedule, run, frames or 0, 1), run, split, frames)


def _check_inherited(plan: StudentPlan, cfg: Config, above: Config) -> None:
    """Refuse modules to inherit of which an expert that is yet to be trained will have no tensor."""
    if not plan.inherit:
        return
    student, expert = build_detector(cfg), build_detector(above)
    try:
        inherit_state(student, expert.state_dict(), plan.inherit, f"expert of {above.filename}")
    except FD3DError as error:
        raise FD3DError(f"{plan.section}.inherit is {list(plan.inherit)}: {error}") from error


def _check_store(profile: Profile, pair: Family, above: Config, cfg: Config, data: KnownData | None) -> None:
    """Refuse settings of the dump that do not fit the expert, and settings of FD3D that do not fit the store that will be."""
    schema = expert_schema(above, _cameras(above, data), profile.dump)
    if is_foreign(cfg):
        return
    settings = replace(pair.distill, expert="cached", history=None)  # which expert there is decides no shape
    store = PlannedStore.of(schema, profile.dump.rule, above.pc_range, pair.store)
    made = distiller_config(cfg, pair.store, FD3D, settings) | {"store": store}
    with torch.random.fork_rng(), torch.device("meta"):
        MODELS.build(made)
    if data is not None and data.image_hw is not None:
        _check_grids(pair, settings, data.image_hw)


def _check_grids(pair: Family, settings: DistillSettings, image_hw: tuple[int, int]) -> None:
    grids = (pyramid_of(config, image_hw) for config in (pair.apprentice.config, pair.expert.config))
    for level, (ours, theirs) in enumerate(zip(*grids, strict=False)):
        if settings.levels is None or level in settings.levels:
            check_grid(level, ours, theirs, "or name the levels that do in distill.levels")


def _cameras(cfg: Config, data: KnownData | None) -> Cameras:
    """Cameras by which an expert's shapes are known: calibration, and where nothing is known sizes, decide none that is asked for."""
    some = rig_cameras(*(data.image_hw if data is not None and data.image_hw is not None else (900, 1600)))
    number = cfg.model.pts_bbox_head.get("transformer", {}).get("num_cams", len(CAMERAS))
    names = data.cameras if data is not None else tuple(f"CAM_{n}" for n in range(number))
    chosen = [n % len(some.names) for n in range(len(names))]
    return replace(some, intrinsics=some.intrinsics[chosen], lidar2cam=some.lidar2cam[chosen], names=names)
