"""A TCP proxy that knows Kafka's frames, in front of the listeners that brokers advertise.

    with ApacheKafka(nodes=3, proxied=True) as kafka, Proxy(kafka.routes) as proxy:
        fault = hold_heartbeats("consumer-1")
        with proxy.injected(fault):
            ...

Brokers tell clients the proxy's ports (`ApacheKafka(proxied=True)` sets their advertised listeners so), and no
response has to be rewritten. Only requests and answers in plain text can be told apart: no TLS, no SASL before KIP-152.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import socket
import struct
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from types import TracebackType
from typing import TypeVar

from network import Fault, Header, Kind, Way

T = TypeVar("T")
Stream = tuple[asyncio.StreamReader, asyncio.StreamWriter]
HOST = "127.0.0.1"
_PIECE = 16 * 1024  # what a throttled frame is sent in
_PATIENCE_S = 10.0


class Proxy:
    """`routes`: which port of this machine leads to which. Runs on a thread of its own; every method may be called
    from any thread. Raises OSError where a port is taken."""

    def __init__(self, routes: Mapping[int, int]) -> None:
        self._routes = dict(routes)
        self._faults: list[Fault] = []
        self._links: set[_Link] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="kafka-proxy", daemon=True)
        self._servers: list[asyncio.Server] = []

    @property
    def bootstrap_servers(self) -> str:
        return ",".join(f"{HOST}:{port}" for port in self._routes)

    @property
    def connections(self) -> int:
        """Open now, those included whose client is gone but whose held requests are not."""
        return len(self._links)

    def __enter__(self) -> Proxy:
        self._thread.start()
        try:
            self._call(self._listen())
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Cut everything and end the thread. Held requests never arrive."""
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(_PATIENCE_S)
        assert not self._thread.is_alive(), "the proxy's thread did not end"
        self._loop.close()

    def inject(self, fault: Fault) -> Fault:
        """From now on, until `lift`."""
        self._call(self._begin(fault))
        return fault

    def lift(self, fault: Fault) -> None:
        """What it has held goes out now, and nothing more is touched. Nothing where it is not in force."""
        self._call(self._end(fault))

    @contextlib.contextmanager
    def injected(self, fault: Fault) -> Iterator[Fault]:
        self.inject(fault)
        try:
            yield fault
        finally:
            self.lift(fault)

    # On the proxy's thread

    def judge(self, way: Way, header: Header | None, client_id: str | None, port: int | None) -> list[Fault]:
        """The faults in force that touch this frame; each counts it."""
        found = [fault for fault in self._faults if fault.touches(way, header, client_id, port)]
        for fault in found:
            fault.hits += 1
        return found

    def _call(self, work: Awaitable[T]) -> T:
        async def run() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(_PATIENCE_S)

    async def _listen(self) -> None:
        for port in self._routes:

            async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int = port) -> None:
                with contextlib.suppress(asyncio.CancelledError):  # by `_shut`; asyncio would log it as an error
                    await self._accept(reader, writer, port)

            self._servers.append(await asyncio.start_server(accept, HOST, port))

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int) -> None:
        try:
            upstream = await asyncio.open_connection(HOST, self._routes[port])
        except OSError:  # the broker is down: so is this way to it
            _reset(writer)
            return
        except asyncio.CancelledError:  # by `_shut`, which knows only links that are complete
            _reset(writer)
            raise
        link = _Link(self, (reader, writer), upstream, port)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)

    async def _begin(self, fault: Fault) -> None:
        self._faults.append(fault)
        if fault.kind is Kind.CUT:
            for link in [link for link in self._links if fault.touches(Way.BOTH, None, link.client_id, link.port)]:
                fault.hits += 1
                link.reset()

    async def _end(self, fault: Fault) -> None:
        if fault in self._faults:
            self._faults.remove(fault)
            for link in self._links:
                link.release(fault)

    async def _shut(self) -> None:
        for server in self._servers:
            server.close()
        for link in list(self._links):
            link.reset()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


class _Link:
    """One connection of a client, and the one to the broker that stands for it."""

    def __init__(self, proxy: Proxy, client: Stream, broker: Stream, port: int) -> None:
        self._proxy = proxy
        self.port = port  # that clients are told for this broker
        self._asked: dict[int, Header] = {}  # by correlation ID: requests whose answer has not come
        self._writers = client[1], broker[1]
        self._lanes = (
            _Lane(self, Way.REQUESTS, client[0], broker[1], self._request),
            _Lane(self, Way.ANSWERS, broker[0], client[1], self._answered),
        )
        self._tasks: list[asyncio.Task[None]] = []
        self.client_id: str | None = None  # unknown before the first request

    async def run(self) -> None:
        """Until both streams have ended and what they brought is delivered."""
        self._tasks = [asyncio.ensure_future(work) for lane in self._lanes for work in (lane.receive(), lane.send())]
        try:
            await asyncio.gather(*self._tasks, return_exceptions=True)
        finally:
            for writer in self._writers:
                writer.close()

    def reset(self) -> None:
        for writer in self._writers:
            _reset(writer)
        for task in self._tasks:
            task.cancel()

    def release(self, fault: Fault) -> None:
        for lane in self._lanes:
            lane.release(fault)

    def judge(self, way: Way, header: Header | None) -> list[Fault]:
        return self._proxy.judge(way, header, self.client_id, self.port)

    def _request(self, frame: bytes) -> Header:
        header = Header.parse(frame)
        self.client_id = header.client_id
        self._asked[header.correlation_id] = header
        return header

    def _answered(self, frame: bytes) -> Header | None:
        (correlation_id,) = struct.unpack_from(">i", frame)
        return self._asked.pop(correlation_id, None)


class _Lane:
    """One direction of a link. A frame is judged when it has come, and sent when it is due.

    The queue needs no bound: Kafka's clients wait for answers before they send much more.
    """

    def __init__(
        self,
        link: _Link,
        way: Way,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        identify: Callable[[bytes], Header | None],
    ) -> None:
        self._link, self._way = link, way
        self._reader, self._writer = reader, writer
        self._identify = identify
        self._held: deque[tuple[Fault, bytes | None]] = deque()
        self._queue: asyncio.Queue[tuple[float, list[Fault], bytes | None]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._ended = False  # the stream has, while frames of it are held

    async def receive(self) -> None:
        while (frame := await self._read()) is not None:
            header = self._identify(frame)
            self._judge(frame, self._link.judge(self._way, header))
        # The end of the stream stays behind what is held, so that the other side does not see it first.
        if self._held:
            self._ended = True
        else:
            self._judge(None, self._link.judge(self._way, None))

    async def send(self) -> None:
        while True:
            due, slow, frame = await self._queue.get()
            if (wait := due - self._loop.time()) > 0:
                await asyncio.sleep(wait)
            if frame is None:
                self._writer.close()
                return
            # A side that is gone takes nothing; the other direction must still end in its own time.
            with contextlib.suppress(OSError):
                await self._write(struct.pack(">i", len(frame)) + frame, slow)

    def release(self, fault: Fault) -> None:
        """In order, and before anything that comes later."""
        freed = [frame for by, frame in self._held if by is fault]
        self._held = deque(item for item in self._held if item[0] is not fault)
        for frame in freed:
            self._put(frame, [])
        if self._ended and not self._held:
            self._put(None, [])

    def _judge(self, frame: bytes | None, faults: list[Fault]) -> None:
        kinds = {fault.kind: fault for fault in faults}
        if Kind.CUT in kinds:
            self._link.reset()
        elif Kind.HOLD in kinds:
            self._held.append((kinds[Kind.HOLD], frame))
        elif Kind.DROP not in kinds:
            self._put(frame, faults)

    def _put(self, frame: bytes | None, faults: list[Fault]) -> None:
        late = sum(fault.amount for fault in faults if fault.kind is Kind.DELAY)
        slow = [fault for fault in faults if fault.kind is Kind.THROTTLE]
        self._queue.put_nowait((self._loop.time() + late, slow, frame))

    async def _read(self) -> bytes | None:
        """A frame without its length; None at the end of the stream, orderly or not."""
        try:
            (size,) = struct.unpack(">i", await self._reader.readexactly(4))
            return await self._reader.readexactly(size)
        except (asyncio.IncompleteReadError, OSError):
            return None

    async def _write(self, data: bytes, slow: list[Fault]) -> None:
        if not slow:
            self._writer.write(data)
            await self._writer.drain()
            return
        for start in itertools.count(0, _PIECE):
            piece = data[start : start + _PIECE]
            if not piece:
                return
            for fault in slow:
                await asyncio.sleep(fault.wait_s(self._way, len(piece), self._loop.time()))
            self._writer.write(piece)
            await self._writer.drain()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close without a goodbye: the other side sees "connection reset"."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
