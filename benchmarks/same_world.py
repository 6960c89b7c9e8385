"""Is a generated world the same on every processor? Digests of a world and its index under other kernels and instructions.

Every setting runs in a process of its own: BLAS kernels of three processors, numpy, OpenCV and the C library without AVX2,
FMA and AVX-512, one and two threads. Prints a digest of the tables, of the images and the index's hash for each::

    python -m benchmarks.same_world --scenes 12
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Annotated

import typer

BASE = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
NUMPY_OLD = "AVX2 FMA3 AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
NUMPY_NO_512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
LIBC_OLD = "glibc.cpu.hwcaps=-AVX2_Usable,-AVX2,-FMA_Usable,-FMA,-FMA4,-AVX512F_Usable,-AVX512F,-AVX512VL"
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "BLAS of a Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "BLAS of a Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "BLAS of a SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "numpy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": NUMPY_NO_512},
    "numpy without AVX2, FMA, AVX-512": {"NPY_DISABLE_CPU_FEATURES": NUMPY_OLD},
    "C library without AVX2, FMA, AVX-512": {"GLIBC_TUNABLES": LIBC_OLD},
    "OpenCV without AVX2, FMA, AVX-512": {"OPENCV_CPU_DISABLE": "AVX,AVX2,FMA3,AVX512_SKX"},
    "all old": {
        "OPENBLAS_CORETYPE": "Prescott",
        "NPY_DISABLE_CPU_FEATURES": NUMPY_OLD,
        "GLIBC_TUNABLES": LIBC_OLD,
        "OPENCV_CPU_DISABLE": "AVX,AVX2,FMA3,AVX512_SKX",
    },
    "two threads": {"OMP_NUM_THREADS": "2", "OPENBLAS_NUM_THREADS": "2"},
}

ONE = """
import sys
from pathlib import Path
from pipeline.data.index import build_index
from pipeline.data.world.config import WorldConfig
from pipeline.data.world.generate import generate_world
root, scenes, frames = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = WorldConfig(train_scenes=scenes, val_scenes=1, frames_per_scene=frames)
generate_world(root / "world", config, workers=0)
print(build_index(root / "world", config.version, root / "index.npz").sha256)
"""


def digest(root: Path, pattern: str) -> str:
    """SHA-256 over names and bytes of the files that a pattern names."""
    total = hashlib.sha256()
    for file in sorted(root.glob(pattern)):
        if file.is_file():
            total.update(file.relative_to(root).as_posix().encode() + b"\0" + file.read_bytes())
    return total.hexdigest()[:16]


def made_under(setting: dict[str, str], scenes: int, frames: int) -> dict[str, str]:
    """Digests of a world that a process with these environment variables makes."""
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            k: v for k, v in os.environ.items() if not k.startswith(("OPENBLAS", "NPY_", "OPENCV_", "GLIBC"))
        }
        done = subprocess.run(
            [sys.executable, "-c", ONE, folder, str(scenes), str(frames)],
            env=environment | BASE | setting,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(done.stderr[-2000:])
        world = Path(folder) / "world"
        return {
            "tables": digest(world, "v1.0-world/*"),
            "images": digest(world, "samples/CAM*/*"),
            "points": digest(world, "samples/LIDAR_TOP/*"),
            "ego motion": digest(world, "can_bus/*"),
            "index": done.stdout.split()[-1][:16],
        }


def main(
    scenes: Annotated[int, typer.Option(min=1, help="Training scenes of the world.")] = 12,
    frames: Annotated[int, typer.Option(min=1, help="Key frames of a scene.")] = 10,
) -> None:
    """Print the digests by setting, and whether all are equal; exit status 1 where they are not."""
    found = {}
    for name, setting in SETTINGS.items():
        found[name] = made_under(setting, scenes, frames)
        print(f"{name:40} " + "  ".join(f"{part} {value}" for part, value in found[name].items()), flush=True)
    same = len({tuple(entry.values()) for entry in found.values()}) == 1
    print("all equal" if same else "NOT equal")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    typer.run(main)
