"""One HTTP client for all tests. httpx.get() and httpx.post() read the system's certificates on each call, which takes 20 ms of a core: a
fifth of one while a test asks every 0.1 s whether a state has been reached."""

import httpx

http = httpx.Client(
    limits=httpx.Limits(max_keepalive_connections=0)
)  # a server that restarts leaves no connection behind
