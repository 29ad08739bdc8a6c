"""One HTTP client for all tests. httpx.get() and httpx.post() read the system's certificates on each call, which takes 20 ms of a core: a
fifth of one while a test asks every 0.1 s whether a state has been reached."""

import httpx

# A kept connection would outlive its server; a proxy in the environment is not for the loopback.
http = httpx.Client(trust_env=False, limits=httpx.Limits(max_keepalive_connections=0))
