"""What a pair of detectors will take, in words: store, expert hours, GPU memory and hours of the trainings."""

from dataclasses import replace

from mmengine.config import Config

from pipeline.cost.early import Outlook
from pipeline.cost.memory import TrainingMemory, training_memory
from pipeline.cost.plan import RATIOS, Measured, StorePlan, coverage_of, expert_schema, plan_store, plan_work, table
from pipeline.data.augment import read_augment
from pipeline.distill.mixing import check_mixed
from pipeline.dumping.settings import DumpSettings
from pipeline.errors import FD3DError, counted
from pipeline.expert.declared import is_foreign
from pipeline.models.build import load_config
from pipeline.profile import Family, Profile
from pipeline.training.schedule import plan_course
from pipeline.training.settings import RunSettings, read_schedule
from store_schema import StoreSchema

_NO_RATE = """expert hours need --rate, the frames per second of the expert on one GPU: time 'fd3d dump {expert} --scene SCENE --out
runs/rate' and divide the scene's frames by the seconds{after}"""
_NO_TRAIN_RATE = """training hours need --train-rate, the frames per second of a training on one GPU: set max_iters in families.{name}.apprentice.train
to 100, run 'fd3d train --family {name} --method plain --out runs/rate' and take steps x batch / seconds of runs/rate/train.json"""

_NO_MEMORY = """{training}: the memory of a detector of another project is measured, not planned: train it with max_iters: 4 in
families.{name}, and take peak_memory_mb of its train.json"""


def store_lines(schema: StoreSchema, settings: DumpSettings, outlook: Outlook) -> tuple[StorePlan, list[str]]:
    """A store's plan, with a row per array and where its figures come from."""
    measured = Measured.of(outlook.like) if outlook.like else Measured({}, {})
    shares = coverage_of(outlook.coverage, schema, measured.coverage)
    rows, known = settings.frames_per_shard, replace(measured, coverage=shares)
    store = plan_store(schema, outlook.frames, rows, known, outlook.scenes)
    source = str(outlook.like) if outlook.like else f"defaults of pipeline/cost/plan.py ({', '.join(RATIOS)})"
    filled = f"{100 * store.frames / (store.shards * rows):.0f} % filled"
    told = [f"compression as of {source}; {counted(store.shards, 'shard')} of up to {counted(rows, 'frame')}, {filled}"]
    if shares and not outlook.like and not outlook.coverage:
        told.append(
            "shares of cells as of nuScenes' boxes without margins, whatever the profile's section focal says: yours may be several times "
            "larger; give --like STORE, a dump of a scene (fd3d dump --scene SCENE --out STORE), or --coverage"
        )
    return store, [*table(store, shares), *told, ""]


def expert_lines(store: StorePlan, outlook: Outlook) -> list[str]:
    """Passes and hours of the expert, for one dump and online."""
    assert outlook.rate is not None
    hours = ["hours"] if len(outlook.gpus) == 1 else [f"{counted(n, 'GPU')}, h" for n in outlook.gpus]
    heads = [
        f"{'':24} {'expert passes':>14} {'worker-hours':>13}",
        *(f"{head:>9}" for head in hours),
        f"{'store, GB':>10}",
    ]
    lines = [" ".join(heads)]
    for name, passes, size in (
        ("dump once", outlook.frames, store.total),
        (
            f"online, {outlook.students} x {counted(outlook.epochs, 'epoch')}",
            outlook.frames * outlook.epochs * outlook.students,
            0.0,
        ),
    ):
        work = [plan_work(passes, outlook.rate, workers) for workers in outlook.gpus]
        cells = " ".join(f"{one.elapsed:9.1f}" for one in work)
        lines.append(f"{name:24} {passes:14d} {work[0].hours:13.1f} {cells} {size / 1e9:10.2f}")
    return lines


def config_lines(cfg: Config, settings: DumpSettings, outlook: Outlook) -> list[str]:
    """Store of an expert's config, and expert hours where there is a rate.

    Raises:
        FD3DError: the config is no expert of this project.
    """
    store, lines = store_lines(expert_schema(cfg, outlook.cameras, settings), settings, outlook)
    without = _NO_RATE.format(expert=f"--config {cfg.filename} --checkpoint CHECKPOINT", after="")
    return lines + (expert_lines(store, outlook) if outlook.rate else [without])


def family_lines(profile: Profile, family: Family, outlook: Outlook) -> list[str]:
    """Store, expert hours, and memory and hours of the trainings of a family of the profile.

    Raises:
        FD3DError: the expert's config is no detector of this project, or expert and student do not fit; naming which.
    """
    expert, student = (load_config(one.config) for one in (family.expert, family.apprentice))
    schema = expert_schema(expert, outlook.cameras, profile.dump)
    trainings = [
        ("plain", student, family.apprentice.train, None),
        ("fd3d", student, family.apprentice.train, schema),
    ]
    if family.expert.checkpoint is None:
        trainings.insert(0, ("expert", expert, family.expert.train, None))
    course = plan_course(read_schedule(student), family.apprentice.train, outlook.frames, processes=1)
    outlook = replace(outlook, epochs=round(course.updates * course.batch / outlook.frames) or 1)
    sizes = [run.batch_size or read_schedule(cfg).batch_size for _, cfg, run, _ in trainings]
    memory: dict[str, TrainingMemory] = {}
    mixed = family.distill.w_mixed > 0
    if mixed:
        foreign = is_foreign(student)
        levels = range(len(schema.pv)) if family.distill.levels is None else family.distill.levels
        try:
            check_mixed(schema, levels, foreign, 0 if foreign else student.model.img_neck.out_channels)
        except FD3DError as error:
            raise FD3DError(f"families.{family.name}: {error}") from error
    # the distilled training first, which is refused where the pyramids' grids differ
    for (name, cfg, _, read), size in [*zip(trainings, sizes, strict=True)][::-1]:
        if not is_foreign(cfg):
            memory[name] = training_memory(cfg, outlook.cameras, size, read, mixed)
    store, lines = store_lines(schema, profile.dump, outlook)
    after = f" (after the expert stage: 'dvc repro expert@{family.name}')"
    lines = [
        f"== {family.name}: {family.expert.config} -> {family.apprentice.config}, {counted(outlook.frames, 'frame')}",
        *lines,
        *(
            expert_lines(store, outlook)
            if outlook.rate
            else [_NO_RATE.format(expert=f"--family {family.name}", after=after)]
        ),
        "",
        f"{'GPU memory, GB':24} {'weights':>9} {'optimiser':>9} {'images':>9} {'activations':>12} {'fd3d':>9} {'all':>9}",
    ]
    for (name, *_), size in zip(trainings, sizes, strict=True):
        if name in memory:
            lines.append(_memory_line(f"{name}, batch {size}", memory[name]))
        else:
            lines.append(_NO_MEMORY.format(training=name, name=family.name))
    lines += [
        "in float32, at the end of the forward pass; measured peaks are some 3 GB higher (docs/planning.md)",
        "",
        f"{'training':24} {'GPUs':>6} {'hours':>9}  frames of an update",
    ]
    for name, cfg, run, _ in trainings:
        for gpus in outlook.gpus:
            lines.append(_training_line(name, gpus, cfg, run, outlook, measured=name != "expert"))
    if any(read_augment(cfg).class_balanced for _, cfg, _, _ in trainings):
        lines.append(
            "augment.class_balanced repeats frames (on nuScenes an epoch is 4.4 times as long): updates and hours grow alike"
        )
    if outlook.train_rate is None:
        lines.append(_NO_TRAIN_RATE.format(name=family.name))
    elif family.expert.checkpoint is None:
        lines.append(
            "--train-rate is the student's; the expert's training is slower by a factor to be measured in the same way"
        )
    return lines


def _memory_line(name: str, memory: TrainingMemory) -> str:
    parts = (memory.weights, memory.optimiser, memory.images + memory.history, memory.activations, memory.distillation)
    widths = (9, 9, 9, 12, 9, 9)
    return f"{name:24} " + " ".join(f"{n / 1e9:{w}.2f}" for n, w in zip((*parts, memory.total), widths, strict=True))


def _training_line(name: str, gpus: int, cfg: Config, run: RunSettings, outlook: Outlook, measured: bool) -> str:
    """Hours of a training on a number of GPUs, with what the training prints; the reason where they cannot share an update."""
    try:
        course = plan_course(read_schedule(cfg), run, outlook.frames, gpus)
    except FD3DError as error:
        return f"{name:24} {gpus:6d} {'-':>9}  {error}"
    hours = "-"
    if outlook.train_rate and measured:
        hours = f"{course.updates * course.batch / outlook.train_rate / gpus / 3600:.1f}"
    return f"{name:24} {gpus:6d} {hours:>9}  {course}"
