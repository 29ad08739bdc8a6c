"""~/.shoestring/NAME, the private folder of cluster NAME on the machine that leads it: its SSH key and the host keys it has seen."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path

from cluster.market.tags import check_name
from cluster.money.ledger import root


class Folder:
    """The folder of one cluster (0700), created with a key pair if it doesn't exist."""

    def __init__(self, name: str):
        check_name("cluster_name", name)
        self.path = root() / name
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path.chmod(0o700)
        self.key = self.path / "key"
        """OpenSSH private key. One per cluster, so that nothing a rented machine learns is of use elsewhere."""
        self.known_hosts = self.path / "known_hosts"
        """Host keys by rental, pinned at the first login."""
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
        """Returns the ssh options that reach this rental, and refuse another machine at the same address."""
        return {
            "IdentityFile": str(self.key),
            "IdentitiesOnly": "yes",
            "UserKnownHostsFile": str(self.known_hosts),
            "StrictHostKeyChecking": "accept-new",
            "HostKeyAlias": rental,
            "CheckHostIP": "no",
            "HashKnownHosts": "no",
            "PasswordAuthentication": "no",
            "ForwardAgent": "no",  # overrides ~/.ssh/config: the machine isn't trusted
            "ForwardX11": "no",
            "LogLevel": "ERROR",
        }

    def ssh(self, rental: str, address: tuple[str, int], **options: str) -> list[str]:
        """Returns the command that logs in to a rental; words appended to it are run there. address: (host, port) of its sshd."""
        words = [
            word for key, value in (self.ssh_options(rental) | options).items() for word in ("-o", f"{key}={value}")
        ]
        return ["ssh", *words, "-p", str(address[1]), f"root@{address[0]}"]
