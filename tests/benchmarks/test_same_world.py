"""The same seed gives the same tables, images and index under other kernels and instructions."""

import os
import subprocess
import sys

from benchmarks.same_world import BASE, OLD, made_under

NEW = {"OPENBLAS_CORETYPE": "Haswell"}
FUNCTIONS = """
import hashlib, numpy as np
from pipeline.data.geometry import arctan2, cos_sin, product
draw = np.random.default_rng(0)
total = hashlib.sha256(product(draw.uniform(-9, 9, (500, 4, 4)), draw.uniform(-9, 9, (4, 4))).tobytes())
for x, y in draw.uniform(-9, 9, (10000, 2)).tolist():
    total.update(np.array([arctan2(y, x), *cos_sin(x)]).tobytes())
print(total.hexdigest())
"""


def test_functions_of_angles_and_products_have_the_same_bits_on_an_old_processor() -> None:
    call = [sys.executable, "-c", FUNCTIONS]
    here, old = (subprocess.check_output(call, env=os.environ | BASE | setting) for setting in (NEW, OLD))
    assert here == old


def test_an_old_processor_makes_the_same_world_and_index() -> None:
    here, old = (made_under(setting, scenes=1, frames=2) for setting in (NEW, OLD))
    assert here == old
