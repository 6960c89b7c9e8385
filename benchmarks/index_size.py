"""Time and memory of the frame index on tables of nuScenes' size, for this code and for another checkout's.

The tables are made up: 850 scenes, 34,149 key frames, 41 boxes a frame (1.4 M), six cameras and a LiDAR, a CAN bus file for
each scene, and with ``--sweeps`` the 2.6 M rows of sensor data and ego poses that nuScenes has. Numbers and names have the
lengths of nuScenes'. There are no images, so the index finds each missing; looking for a file costs what finding one does.

    python -m benchmarks.index_size --folder /tmp/tables --code . --code ../another-checkout

Every step runs in a process of its own. Memory of a worker is what the process has for itself (``Private_Dirty`` in
``/proc/self/smaps_rollup``; pages of a mapped file are the system's, once for all processes) beyond what it had before it was
sent the index, after it has read 2,000 frames.
"""

import json
import os
import random
import subprocess
import sys
from pathlib import Path
from typing import IO, Annotated

import typer

FIRST = 400  # number of the first scene; the devkit refuses CAN bus files of some scenes before
VERSION, START, PERIOD = "v1.0-trainval", 1_532_402_927_612_460, 500_000
CHANNELS = [
    "CAM_FRONT",
    "CAM_FRONT_RIGHT",
    "CAM_FRONT_LEFT",
    "CAM_BACK",
    "CAM_BACK_LEFT",
    "CAM_BACK_RIGHT",
    "LIDAR_TOP",
]
KINDS = [
    "vehicle.car",
    "human.pedestrian.adult",
    "movable_object.barrier",
    "vehicle.truck",
    "movable_object.trafficcone",
]

_BUILD = """
import resource, sys, warnings
import numpy, nuscenes.nuscenes, pipeline.data.index
warnings.simplefilter("ignore")
imports = resource.getrusage(resource.RUSAGE_SELF)
pipeline.data.index.build_index(*sys.argv[1:4])
used = resource.getrusage(resource.RUSAGE_SELF)
print(f"{used.ru_utime + used.ru_stime - imports.ru_utime - imports.ru_stime:.1f} {used.ru_maxrss / 1e6:.2f}")
"""

_WORKER = """
import pickle, re, sys, time
import numpy as np
from pipeline.data.index import FrameIndex
def own():
    return int(re.search(r"Private_Dirty: +(\\d+)", open("/proc/self/smaps_rollup").read())[1]) / 1e3
if sys.argv[2] == "load":
    start = time.perf_counter(); index = FrameIndex.load(sys.argv[1]); seconds = time.perf_counter() - start
    sent = pickle.dumps(index)
    open(sys.argv[3], "wb").write(sent)
    print(f"{seconds:.2f} {len(sent) / 1e6:.3f}")
else:
    sent = open(sys.argv[3], "rb").read() if len(sys.argv) > 3 else b""
    before = own() - len(sent) / 1e6
    index = pickle.loads(sent); del sent
    for row in np.random.default_rng(0).integers(0, len(index), 2000).tolist():
        index[row]
    print(f"{own() - before:.1f}")
"""


class Table:
    """A table written row by row."""

    def __init__(self, folder: Path, name: str) -> None:
        self.file: IO[str] = open(folder / f"{name}.json", "w")  # noqa: SIM115
        self.file.write("[")
        self.first = True

    def add(self, row: str) -> None:
        """Append a row, as JSON."""
        self.file.write(row if self.first else f",\n{row}")
        self.first = False

    def close(self) -> None:
        """End the table."""
        self.file.write("]")
        self.file.close()


def synthesise(root: Path, frames: int, boxes: int, sweeps: bool) -> None:
    """Write the tables.

    Args:
        frames: key frames, in scenes of about 40.
        boxes: annotations of a frame.
        sweeps: whether sensor data between key frames is written too.
    """
    folder = root / VERSION
    folder.mkdir(parents=True)
    (root / "can_bus").mkdir()
    (root / "maps").mkdir()
    draw = random.Random(0)
    counter = iter(range(1 << 60))

    def token() -> str:
        return f"{next(counter) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128):032x}"  # looks drawn, is never twice

    def numbers(count: int, scale: float) -> str:
        return "[" + ", ".join(repr(draw.uniform(-scale, scale)) for _ in range(count)) + "]"

    plain: dict[str, list[dict]] = {
        name: [] for name in ("category", "attribute", "visibility", "sensor", "log", "map")
    }
    plain["category"] = [{"token": token(), "name": kind, "description": "", "index": 0} for kind in KINDS]
    plain["attribute"] = [{"token": token(), "name": "vehicle.moving", "description": ""}]
    plain["visibility"] = [{"token": str(n), "level": "", "description": ""} for n in range(1, 5)]
    plain["sensor"] = [
        {"token": token(), "channel": c, "modality": "lidar" if "LIDAR" in c else "camera"} for c in CHANNELS
    ]
    plain["log"] = [{"token": token(), "logfile": "", "vehicle": "", "date_captured": "", "location": "boston-seaport"}]
    plain["map"] = [
        {"token": token(), "log_tokens": [plain["log"][0]["token"]], "category": "", "filename": "maps/m.png"}
    ]
    (root / "maps" / "m.png").touch()
    for name, rows in plain.items():
        (folder / f"{name}.json").write_text(json.dumps(rows))
    names = ("scene", "sample", "sample_data", "ego_pose", "calibrated_sensor", "instance", "sample_annotation")
    table = {name: Table(folder, name) for name in names}
    scenes = max(1, round(frames * 850 / 34149))
    messages = [
        {
            "accel": [draw.gauss(0, 1) for _ in range(3)],
            "orientation": [draw.random() for _ in range(4)],
            "pos": [draw.uniform(0, 2000) for _ in range(3)],
            "rotation_rate": [draw.gauss(0, 1) for _ in range(3)],
            "utime": START + 20_000 * n,
            "vel": [draw.gauss(0, 1) for _ in range(3)],
        }
        for n in range(1000)
    ]
    (root / "can_bus" / f"scene-{FIRST:04d}_pose.json").write_text(json.dumps(messages))
    for scene in range(scenes):
        name, scene_token = f"scene-{FIRST + scene:04d}", token()
        if scene:
            os.symlink(f"scene-{FIRST:04d}_pose.json", root / "can_bus" / f"{name}_pose.json")
        count = frames * (scene + 1) // scenes - frames * scene // scenes
        samples = ["", *(token() for _ in range(count)), ""]
        mounts = [token() for _ in CHANNELS]
        for mount, sensor in zip(mounts, plain["sensor"], strict=True):
            intrinsic = (
                [[1266.4, 0.0, 816.2], [0.0, 1266.4, 491.5], [0.0, 0.0, 1.0]] if sensor["modality"] == "camera" else []
            )
            table["calibrated_sensor"].add(
                f'{{"token": "{mount}", "sensor_token": "{sensor["token"]}", "translation": {numbers(3, 2)}, '
                f'"rotation": {numbers(4, 1)}, "camera_intrinsic": {json.dumps(intrinsic)}}}'
            )
        objects = [[token() for _ in range(count)] for _ in range(boxes)]
        kinds = [draw.choice(plain["category"])["token"] for _ in objects]
        instances = [token() for _ in objects]
        for own, kind, chain in zip(instances, kinds, objects, strict=True):
            table["instance"].add(
                f'{{"token": "{own}", "category_token": "{kind}", "nbr_annotations": {count}, '
                f'"first_annotation_token": "{chain[0]}", "last_annotation_token": "{chain[-1]}"}}'
            )
        table["scene"].add(
            f'{{"token": "{scene_token}", "log_token": "{plain["log"][0]["token"]}", "nbr_samples": {count}, '
            f'"first_sample_token": "{samples[1]}", "last_sample_token": "{samples[-2]}", "name": "{name}", "description": ""}}'
        )
        for frame in range(count):
            own, time = samples[frame + 1], START + PERIOD * frame
            ego = [draw.uniform(0, 2000), draw.uniform(0, 2000), 0.0]
            table["sample"].add(
                f'{{"token": "{own}", "timestamp": {time}, "prev": "{samples[frame]}", "next": "{samples[frame + 2]}", '
                f'"scene_token": "{scene_token}"}}'
            )
            for number, (channel, mount) in enumerate(zip(CHANNELS, mounts, strict=True)):
                for sweep in range(11 if sweeps else 1):  # 77 rows a key frame; nuScenes has 2.6 M with its radars
                    data, at = token(), time + 45_000 * sweep + 1000 * number
                    key, kind = ("true", "samples") if sweep == 0 else ("false", "sweeps")
                    table["sample_data"].add(
                        f'{{"token": "{data}", "sample_token": "{own}", "ego_pose_token": "{data}", '
                        f'"calibrated_sensor_token": "{mount}", "timestamp": {at}, "fileformat": "jpg", '
                        f'"is_key_frame": {key}, "height": 900, "width": 1600, '
                        f'"filename": "{kind}/{channel}/n015-2018-07-24-11-22-45+0800__{channel}__{at}.jpg", '
                        f'"prev": "", "next": "{data}"}}'
                    )
                    table["ego_pose"].add(
                        f'{{"token": "{data}", "timestamp": {at}, "rotation": {numbers(4, 1)}, "translation": {ego}}}'
                    )
            for instance, chain in zip(instances, objects, strict=True):
                before = chain[frame - 1] if frame else ""
                after = chain[frame + 1] if frame + 1 < count else ""
                place = [round(part + draw.uniform(-50, 50), 3) for part in ego]
                table["sample_annotation"].add(
                    f'{{"token": "{chain[frame]}", "sample_token": "{own}", "instance_token": "{instance}", '
                    f'"visibility_token": "4", "attribute_tokens": ["{plain["attribute"][0]["token"]}"], '
                    f'"translation": {place}, "size": [1.812, 4.321, 1.562], "rotation": {numbers(4, 1)}, '
                    f'"prev": "{before}", "next": "{after}", "num_lidar_pts": 12, "num_radar_pts": 1}}'
                )
    for opened in table.values():
        opened.close()


def _run(code: Path, program: str, *arguments: object) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", program, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": str(code.resolve())},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        cwd="/",
    )
    return done.stdout.split()


def main(
    folder: Annotated[Path, typer.Option(help="Folder for the tables, made once, and for the indexes.")],
    code: Annotated[list[Path], typer.Option(help="Checkout whose code is measured; may be given again.")],
    frames: Annotated[int, typer.Option(help="Number of key frames.")] = 34_149,
    boxes: Annotated[int, typer.Option(help="Annotations of a frame.")] = 41,
    sweeps: Annotated[bool, typer.Option(help="Write sensor data between key frames as well.")] = False,
) -> None:
    """Measure build, load and workers of the index."""
    root = folder / f"{frames}-{boxes}{'-sweeps' if sweeps else ''}"
    if not root.exists():
        synthesise(root, frames, boxes, sweeps)
    print("code, build CPU s, build peak GB, file MB, load s, sent to a worker MB, memory of a worker MB")
    for number, checkout in enumerate(code):
        out, sent = folder / f"index-{number}.npz", folder / f"sent-{number}.pickle"
        built = _run(checkout, _BUILD, root, VERSION, out)
        loaded = _run(checkout, _WORKER, out, "load", sent)
        (worker,) = _run(checkout, _WORKER, out, "worker", sent)
        print(", ".join([str(checkout), *built, f"{out.stat().st_size / 1e6:.0f}", *loaded, worker]), flush=True)


if __name__ == "__main__":
    typer.run(main)
