"""Programs that must be installed on a machine that leads a cluster."""

from __future__ import annotations

import shutil

PACKAGES = {"ssh": "openssh-client", "ssh-keygen": "openssh-client", "setpriv": "util-linux", "tar": "tar", "cc": "gcc"}
"""Program → its Debian package."""

TO_RENT_A_HEAD = ("ssh", "ssh-keygen", "tar")
TO_BE_THE_HEAD = tuple(PACKAGES)


def check(*programs: str) -> None:
    """Raises ValueError that names missing programs and the command that installs them."""
    if missing := [program for program in programs if not shutil.which(program)]:
        packages = sorted({PACKAGES[program] for program in missing})
        raise ValueError(
            f"{' and '.join(missing)}: not installed on this machine. On Debian or Ubuntu: sudo apt-get install {' '.join(packages)}"
        )
