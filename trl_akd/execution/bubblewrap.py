"""Level `bwrap`: the command line that starts a helper inside bubblewrap's sandbox.

For machines whose ordinary users may not make namespaces, but where bubblewrap may: it is setuid, or a profile of
AppArmor lets it.
"""

import os
import shutil
from collections.abc import Iterable

from .zygote import confinement, root

__all__ = ["OWN_FOLDER", "WRITABLE", "command"]

OWN_FOLDER = "/etc/trl_akd"
WRITABLE = (root.SCRATCH, "/dev/shm")

# A helper that is root makes each program nobody, ends it, and cleans up after it.
_ROOT_KEEPS = ("SETUID", "SETGID", "SETPCAP", "KILL", "CHOWN", "FOWNER", "DAC_OVERRIDE", "DAC_READ_SEARCH")


def command(sources: Iterable[str], own: str) -> list[str]:
    """Return what to put before the helper's own command line.

    Args:
        sources (`Iterable[str]`): paths to show besides the system's.
        own (`str`): the folder of the helper's code, to show inside OWN_FOLDER.

    Raises:
        FileNotFoundError: If bubblewrap is not installed.
    """
    program = shutil.which("bwrap")
    if program is None:
        raise FileNotFoundError("bubblewrap is not installed: there is no bwrap on the PATH")
    line = [program, "--unshare-pid", "--unshare-net", "--unshare-ipc", "--unshare-uts", "--unshare-cgroup-try"]
    if os.geteuid() == 0:
        line += ["--cap-drop", "ALL", *(word for name in _ROOT_KEEPS for word in ("--cap-add", f"CAP_{name}"))]
    else:
        line += ["--unshare-user"]
    line += ["--proc", "/proc", "--dev", "/dev"]
    for folder in WRITABLE:
        line += ["--size", str(confinement.SCRATCH_BYTES), "--tmpfs", folder]
    for path in root.SYSTEM:
        if os.path.islink(path):
            line += ["--symlink", os.readlink(path), path]
        elif os.path.isdir(path):
            line += ["--ro-bind", path, path]
    for path in root.SETTINGS:
        line += ["--ro-bind-try", path, path]
    for path in sorted({*sources, *map(os.path.realpath, sources)}):
        line += ["--ro-bind", path, path]
    line += ["--ro-bind", own, f"{OWN_FOLDER}/{os.path.basename(own)}"]
    return [*line, "--chdir", root.SCRATCH, "--"]
