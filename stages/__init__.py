"""The command line ``fd3d``: one file a command.

One thread per process unless told otherwise, and idle threads that sleep: two that spin on busy cores are far slower than
one. The variables are set here, before any command imports torch.
"""

import os

for name, value in (("OMP_NUM_THREADS", "1"), ("OMP_WAIT_POLICY", "PASSIVE"), ("GOMP_SPINCOUNT", "0")):
    os.environ.setdefault(name, value)
