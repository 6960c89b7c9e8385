"""Is a generated world the same on every processor? Digests of a world and its index under other kernels and instructions.

Every setting runs in a process of its own: BLAS kernels of three processors; numpy, OpenCV, the C library and numba
without newer instructions; one and two threads. Prints the parts that differ from the first setting's::

    python -m benchmarks.same_world --scenes 12

Other processors are imitated, and all are x86-64: the table says nothing about ARM.
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
AVX512 = "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL"
NUMPY_OLD = f"SSSE3 SSE41 POPCNT SSE42 AVX F16C FMA3 AVX2 {AVX512}"
LIBC_OLD = "glibc.cpu.hwcaps=-AVX,-AVX2,-FMA,-FMA4,-AVX512F,-AVX512VL,-SSE4_1"
OPENCV_OLD = "SSSE3,SSE4.1,SSE4.2,POPCNT,AVX,FP16,AVX2,FMA3,AVX512-SKX"
OLD = {
    "OPENBLAS_CORETYPE": "Prescott",
    "NPY_DISABLE_CPU_FEATURES": NUMPY_OLD,
    "GLIBC_TUNABLES": LIBC_OLD,
    "OPENCV_CPU_DISABLE": OPENCV_OLD,
    "OPENCV_IPP": "disabled",
    "NUMBA_CPU_NAME": "x86-64",
    "NUMBA_CPU_FEATURES": "",
}
SETTINGS: dict[str, dict[str, str]] = {
    "as it is": {},
    "BLAS of a Prescott": {"OPENBLAS_CORETYPE": "Prescott"},
    "BLAS of a Haswell": {"OPENBLAS_CORETYPE": "Haswell"},
    "BLAS of a SkylakeX": {"OPENBLAS_CORETYPE": "SkylakeX"},
    "numpy without AVX-512": {"NPY_DISABLE_CPU_FEATURES": AVX512},
    "numpy with nothing after SSE3": {"NPY_DISABLE_CPU_FEATURES": NUMPY_OLD},
    "C library without AVX and FMA": {"GLIBC_TUNABLES": LIBC_OLD},
    "OpenCV with nothing after SSE3": {"OPENCV_CPU_DISABLE": OPENCV_OLD, "OPENCV_IPP": "disabled"},
    "numba for any x86-64": {"NUMBA_CPU_NAME": "x86-64", "NUMBA_CPU_FEATURES": ""},
    "all old": OLD,
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
            k: v
            for k, v in os.environ.items()
            if not k.startswith(("OPENBLAS", "NPY_", "OPENCV_", "GLIBC", "NUMBA_CPU"))
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
    """Print the digests of the first setting and what differs from them; exit status 1 where anything does."""
    found = {}
    for name, setting in SETTINGS.items():
        found[name] = made_under(setting, scenes, frames)
        first = found["as it is"]
        differing = [f"{part} {value}" for part, value in found[name].items() if value != first[part]]
        shown = "  ".join(f"{part} {value}" for part, value in first.items()) if name == "as it is" else "same"
        print(f"{name:32} {'DIFFERS: ' + '  '.join(differing) if differing else shown}", flush=True)
    same = all(entry == first for entry in found.values())
    print("all equal" if same else "NOT equal")
    raise SystemExit(0 if same else 1)


if __name__ == "__main__":
    typer.run(main)
