"""~/.shoestring/NAME: what a machine that leads the cluster NAME knows and nobody else may: its SSH key, which host keys it has seen."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from cluster.ledger import root
from cluster.tags import check_name


class Folder:
    """The folder of one cluster, made with its key pair where it isn't there (0700)."""

    def __init__(self, name: str):
        check_name("cluster_name", name)
        self.path = root() / name
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.key = self.path / "key"
        """OpenSSH private key. One per cluster, so that a stranger's machine that we log in to learns nothing of use elsewhere."""
        self.known_hosts = self.path / "known_hosts"
        """Host keys by rental: pinned the first time that a rental is reached, which is the first time that anybody can."""
        with open(self.path / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.key.exists():
                new = self.path / "key.new"
                for half in (new, new.with_suffix(".new.pub")):
                    half.unlink(missing_ok=True)
                subprocess.run(
                    ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", f"shoestring {name}", "-f", str(new)],
                    check=True,
                )
                os.replace(f"{new}.pub", f"{self.key}.pub")
                os.replace(new, self.key)

    @property
    def public_key(self) -> str:
        return Path(f"{self.key}.pub").read_text().strip()

    def ssh_options(self, rental: str) -> dict[str, str]:
        """What ssh needs to reach that rental and no other machine at its address."""
        return {
            "IdentityFile": str(self.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "StrictHostKeyChecking": "accept-new",
            "HostKeyAlias": rental,
            "CheckHostIP": "no",
            "HashKnownHosts": "no",
            "PasswordAuthentication": "no",
            "ForwardAgent": "no",  # whatever ~/.ssh/config says: the machine is a stranger's
            "ForwardX11": "no",
            "LogLevel": "ERROR",
        }

    def ssh(self, rental: str, address: tuple[str, int], **options: str) -> list[str]:
        """The command that logs in to that rental; words after it are run there. address: (host, port) of its sshd."""
        words = [
            word for key, value in (self.ssh_options(rental) | options).items() for word in ("-o", f"{key}={value}")
        ]
        return ["ssh", *words, "-p", str(address[1]), f"root@{address[0]}"]
