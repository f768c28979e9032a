"""Run a command as a pod does: `contained.py SPEC COMMAND…`, in a mount namespace of its own, as root.

The root is read-only and holds the environment, Python and the system's libraries: no shell, no compiler, no home. The
command is an arbitrary user's, without capabilities and without a way to get any. Nothing but the standard library is
imported: this is the container runtime.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

PR_SET_NO_NEW_PRIVS = 38
PR_CAPBSET_DROP = 24
LAST_CAPABILITY = 63
LIBRARIES = ("/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share/zoneinfo", "/etc/ssl", "/etc/hosts")
DEVICES = ("/dev/null", "/dev/urandom")


def main() -> None:
    """Make the root, enter it, give up everything, run."""
    spec, command = json.loads(sys.argv[1]), sys.argv[2:]
    root = Path(spec["root"])
    mount("-t", "tmpfs", "-o", "size=1m,mode=755", "tmpfs", str(root))
    for path in [*LIBRARIES, *DEVICES, *spec["read_only"]]:
        bind(root, Path(path))
    for path in spec["writable"]:  # the emptyDir: anybody's, as the kubelet makes it
        inside(root, Path(path)).mkdir(parents=True)
        mount("-t", "tmpfs", "-o", "size=64m,mode=777", "tmpfs", str(inside(root, Path(path))))
    mount("-o", "remount,ro", str(root))
    os.chroot(root)
    os.chdir("/")
    libc = ctypes.CDLL(None, use_errno=True)
    for capability in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, capability, 0, 0, 0)
    os.setgroups([])
    os.setresgid(spec["gid"], spec["gid"], spec["gid"])
    os.setresuid(spec["uid"], spec["uid"], spec["uid"])
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    os.execve(command[0], command, spec["environ"])


def bind(root: Path, path: Path) -> None:
    """Show a file or a folder in the new root, read-only."""
    target = inside(root, path)
    if not path.exists() or target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_symlink():
        target.symlink_to(path.readlink())
        return
    if path.is_dir():
        target.mkdir()
    else:
        target.touch()
    mount("--bind", str(path), str(target))
    mount("-o", "remount,bind,ro", str(target))


def inside(root: Path, path: Path) -> Path:
    """Return where a path of the outside is below the new root."""
    return root / path.relative_to("/")


def mount(*arguments: str) -> None:
    """Mount; a failure ends it."""
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    main()
