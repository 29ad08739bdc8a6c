"""Markets by name, and the account's keys: from the environment, or from a file that nobody else can read."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

from cluster.market.base import Market, Registry
from cluster.market.http import key_file
from cluster.market.runpod import RunPod
from cluster.market.vast import Vast
from lib.errors import nearest

MARKETS: dict[str, type[Vast] | type[RunPod]] = {"vast": Vast, "runpod": RunPod}


def find(name: str, url: str | None = None) -> Market:
    """Returns the client of a market. `url`: another API to use, such as the simulator's; None: the environment variable <NAME>_URL,
    else the market's own. SHOESTRING_PACE: factor on the market's rate limits for such another API.

    Raises ValueError if there is no such market, no key, or a key file that others can read.
    """
    if name not in MARKETS:
        known = f" There are: {', '.join(MARKETS)}."
        raise ValueError(f"There is no market {name}.{nearest(name, MARKETS) or known}")
    url = url or os.environ.get(f"{name.upper()}_URL") or None
    if url:
        _check_url(name, url)
    return MARKETS[name](key(name), url, float(os.environ.get("SHOESTRING_PACE", "1")) if url else 1.0)


def registry(server: str, runpod: str) -> Registry | None:
    """Returns the login for private images at `server`; None if `server` is empty (public images). Raises ValueError."""
    if not server:
        return None
    login = key("registry")
    if not all(login.partition(":")):
        raise ValueError("registry: REGISTRY_API_KEY, or its file, must be USER:TOKEN.")
    return Registry(server, login, runpod)


def key(name: str) -> str:
    """Returns the account's API key: environment variable <NAME>_API_KEY, else the file ~/.config/shoestring/<name>_api_key. Raises
    ValueError."""
    variable = f"{name.upper()}_API_KEY"
    found = os.environ.get(variable, "").strip()
    if found:
        return _word(found, variable)
    path = key_file(name)
    if not path.is_file():
        raise ValueError(f"{name}: there is no API key. Set {variable}, or write it into {path} and chmod 600 {path}")
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise ValueError(f"{name}: others can read {path} (mode {mode:04o}). Run: chmod 600 {path}")
    found = path.read_text(encoding="utf-8").strip()
    if not found:
        raise ValueError(f"{name}: {path} is empty. Write the API key into it.")
    return _word(found, str(path))


def _word(key: str, where: str) -> str:
    """Returns the key if it is valid in an HTTP header; otherwise the HTTP client's error would print it. Raises ValueError."""
    if not (key.isascii() and key.isprintable() and " " not in key):
        raise ValueError(f"{where} holds no valid API key: a key is a single word of ASCII characters.")
    return key


def _check_url(name: str, url: str) -> None:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(f"{name}: {url} is not an http(s) address, such as http://127.0.0.1:8080")
    if parts.scheme == "http" and not _here(parts.hostname):
        raise ValueError(f"{name}: the API key would be sent unencrypted. Use https:// instead of {url}")


def _here(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_private
    except ValueError:
        return host == "localhost"
