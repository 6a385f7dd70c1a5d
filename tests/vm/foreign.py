"""Runs a command that executes programs of another processor, by QEMU's interpreter of them, as root:

foreign.py INTERPRETER MAGIC MASK COMMAND...

Only the command sees the interpreter: since Linux 6.7 each user namespace may have a table of them (binfmt_misc), and
the machine's own is not changed.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TABLE = "/proc/sys/fs/binfmt_misc"
ALL_NUMBERS = "0 0 65536\n"  # users and groups keep theirs
# A namespace's numbers are mapped from outside, once it says that it is there. F: the interpreter is opened now, since
# a changed root does not have it.
SCRIPT = f"""
echo there >&$0 && read mapped && mount -t binfmt_misc none {TABLE} &&
    printf %s ":other:M::$2:$3:$1:F" >{TABLE}/register || exit 125
shift 3
exec "$@" </dev/null
"""


def main() -> int:
    there, told = os.pipe()
    command = ["unshare", "--user", "--mount", "bash", "-c", SCRIPT, str(told), *sys.argv[1:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(told,)) as process:
        os.close(told)
        if os.read(there, 1):
            for kind in ("uid_map", "gid_map"):
                Path(f"/proc/{process.pid}/{kind}").write_text(ALL_NUMBERS)
            process.communicate(b"\n")
        return process.wait()


if __name__ == "__main__":
    sys.exit(main())
