"""The daemon may hold as many descriptors as it is allowed to; what it was given is remembered."""

import subprocess
import sys

_SCRIPT = """
import resource
from node.limits import raise_open_files
_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard // 2, hard))
before = raise_open_files()
print(before == hard // 2, resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard))
"""


def test_the_soft_limit_is_raised_and_told() -> None:
    done = subprocess.run([sys.executable, "-c", _SCRIPT], capture_output=True, check=True)
    assert done.stdout.split() == [b"True", b"True"]
