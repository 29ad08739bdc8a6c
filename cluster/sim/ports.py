"""The mapped ports of a box: TCP forwarders on the 'public' address."""

from __future__ import annotations

import asyncio
import contextlib
import socket


class Port:
    """A public port that forwards to `target` and counts bytes."""

    def __init__(self, public: int):
        self.public, self.bytes_in, self.bytes_out = public, 0, 0
        self._server: asyncio.Server | None = None
        self._pumps: set[asyncio.Task] = set()

    @classmethod
    async def open(cls, address: str, target: tuple[str, int] | None, same: bool = False) -> Port:
        """Opens a public port. target None: it refuses connections. same: the box's port gets the public port's number."""
        listener = socket.socket()
        listener.bind((address, 0))
        port = cls(listener.getsockname()[1])
        if not target:
            listener.close()
            return port
        goal = (target[0], port.public if same else target[1])
        # Listens on the socket that already has the number; another process could take a released one.
        port._server = await asyncio.start_server(
            lambda r, w: port._serve(goal, r, w), sock=listener, limit=1 << 20, backlog=512
        )
        return port

    async def _serve(self, goal: tuple[str, int], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._pumps.add(task)
        there = None
        try:
            far, there = await asyncio.open_connection(*goal, limit=1 << 20)
            for w in (writer, there):
                w.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            await asyncio.gather(self._pump(reader, there, "bytes_in"), self._pump(far, writer, "bytes_out"))
        except (OSError, asyncio.CancelledError):
            pass  # either side hung up, nothing listens in the box, or close(): the other side is closed too
        finally:
            self._pumps.discard(task)
            for w in (writer, there):
                if w:
                    w.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, count: str) -> None:
        while data := await reader.read(1 << 18):
            setattr(self, count, getattr(self, count) + len(data))
            writer.write(data)
            await writer.drain()
        with contextlib.suppress(OSError):
            writer.write_eof()

    async def close(self) -> None:
        if self._server:
            self._server.close()
        for task in list(self._pumps):
            task.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
