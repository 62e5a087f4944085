"""The proxy against a small server: each fault does what it says, to whom it says, and ends when it is lifted."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from consumer.tools.embedded import free_port
from network import (
    Api,
    Fault,
    Header,
    black_hole,
    cut,
    cut_ports,
    delay,
    drop_acknowledgements,
    hold,
    hold_answers,
    hold_end_txn,
    hold_heartbeats,
    throttle,
    throttle_requests,
)
from proxy import Proxy
from waiting import wait_until

# Long enough for a frame to pass on a busy machine, short enough to wait for one that must not.
SOON_S, NEVER_S = 20.0, 0.3


class Server(socketserver.ThreadingTCPServer):
    """Answers each request with its correlation ID and its body. `seen`: what has arrived, in order."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.seen: list[Header] = []
        self.open = 0

    @property
    def port(self) -> int:
        return int(self.server_address[1])


class _Handler(socketserver.StreamRequestHandler):
    server: Server

    def handle(self) -> None:
        self.server.open += 1
        with contextlib.suppress(OSError):
            while len(size := self.rfile.read(4)) == 4:
                request = self.rfile.read(int.from_bytes(size))
                self.server.seen.append(Header.parse(request))
                answer = request[4:8] + request[10 + struct.unpack_from(">h", request, 8)[0] :]
                self.wfile.write(struct.pack(">i", len(answer)) + answer)
        self.server.open -= 1


class Client:
    """One connection. Correlation IDs count from 1."""

    def __init__(self, port: int, client_id: str = "a") -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), SOON_S)
        self.client_id = client_id.encode()
        self.asked = 0

    def ask(self, api: int, body: bytes = b"") -> int:
        self.asked += 1
        head = struct.pack(">hhih", api, 0, self.asked, len(self.client_id)) + self.client_id
        self.socket.sendall(struct.pack(">i", len(head + body)) + head + body)
        return self.asked

    def answer(self, within_s: float = SOON_S) -> int | None:
        """The correlation ID of the next answer; None where none comes in time. OSError where the connection ends."""
        self.socket.settimeout(within_s)
        try:
            size = self._receive(4)
        except TimeoutError:
            return None
        self.socket.settimeout(SOON_S)
        return int.from_bytes(self._receive(int.from_bytes(size))[:4])

    def _receive(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            if not (more := self.socket.recv(size - len(data))):
                raise ConnectionResetError("ended")
            data += more
        return bytes(data)

    def call(self, api: int, body: bytes = b"", within_s: float = SOON_S) -> bool:
        """Whether the answer to this request came, and nothing before it."""
        return self.ask(api, body) == self.answer(within_s)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def proxy(server: Server, port: int) -> Iterator[Proxy]:
    with Proxy({port: server.port}) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy, port: int) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def connect(client_id: str = "a") -> Client:
        made.append(Client(port, client_id))
        return made[-1]

    yield connect
    for client in made:
        client.socket.close()


def test_without_a_fault_everything_passes_unchanged_and_large_frames_too(
    server: Server, connect: Callable[..., Client]
) -> None:
    client = connect("camera-ü")
    assert all(client.call(api, bytes(n)) for n, api in enumerate(range(70)))
    assert client.call(Api.PRODUCE, bytes(20_000_000))
    assert [header.api for header in server.seen] == [*range(70), 0]
    assert {header.client_id for header in server.seen} == {"camera-ü"}


def test_a_header_with_a_null_client_id_or_none_at_all_is_told_apart() -> None:
    assert Header.parse(struct.pack(">hhih", 12, 4, 7, -1)) == (12, 4, 7, "")
    with pytest.raises(ValueError, match="3 bytes"):
        Header.parse(b"\0\0\0")


def test_cut_resets_the_connections_and_every_new_one_until_it_is_lifted(
    proxy: Proxy, connect: Callable[..., Client]
) -> None:
    client = connect()
    assert client.call(Api.FETCH)
    with proxy.injected(cut()) as fault:
        with pytest.raises(ConnectionResetError):
            client.answer()
        with pytest.raises(ConnectionResetError):
            connect().call(Api.FETCH)
        assert fault.hits >= 2
    assert connect().call(Api.FETCH)


def test_the_way_to_one_broker_is_cut_and_the_others_stay(server: Server) -> None:
    """Catches a fault that is for one broker and cuts the clients off from all of them."""
    one, other = free_port(), free_port()
    with Proxy({one: server.port, other: server.port}) as proxy, contextlib.ExitStack() as stack:
        clients = {port: Client(port) for port in (one, other)}
        for client in clients.values():
            stack.enter_context(client.socket)
        assert all(client.call(Api.FETCH) for client in clients.values())
        with proxy.injected(cut_ports(one)) as fault:
            with pytest.raises(ConnectionResetError):
                clients[one].answer()
            with pytest.raises(ConnectionResetError), contextlib.closing((late := Client(one)).socket):
                late.call(Api.FETCH)
            assert clients[other].call(Api.FETCH)
            assert fault.hits == 2


def test_held_answers_come_late_though_the_request_has_arrived(
    server: Server, proxy: Proxy, connect: Callable[..., Client]
) -> None:
    """Catches a fault that holds the request: then the brokers have not done what the client does not know of."""
    client = connect()
    with proxy.injected(hold_answers([Api.END_TXN])):
        client.ask(Api.END_TXN)
        wait_until(lambda: server.seen, SOON_S, "the request to arrive")
        assert client.answer(NEVER_S) is None
    assert client.answer() == 1


def test_a_throttle_of_requests_leaves_the_answers_alone(proxy: Proxy, connect: Callable[..., Client]) -> None:
    """Catches a slow way out that slows the way in, too: it would take twice as long."""
    client = connect()
    with proxy.injected(throttle_requests(400_000)):
        started = time.monotonic()
        assert client.call(Api.PRODUCE, bytes(200_000))
        assert 0.4 <= time.monotonic() - started < 0.9


def test_a_black_hole_keeps_the_connection_and_delivers_late(
    server: Server, proxy: Proxy, connect: Callable[..., Client]
) -> None:
    client = connect()
    assert client.call(Api.FETCH)
    with proxy.injected(black_hole()):
        for _ in range(3):
            client.ask(Api.FETCH)
        silent = connect()
        silent.ask(Api.METADATA)
        assert client.answer(NEVER_S) is None
        assert silent.answer(NEVER_S) is None
        assert len(server.seen) == 1
    assert [client.answer() for _ in range(3)] == [2, 3, 4]
    assert silent.answer() == 1


def test_a_delay_is_added_in_both_directions_and_does_not_add_up_over_frames(
    proxy: Proxy, connect: Callable[..., Client]
) -> None:
    """Catches a proxy that sleeps frame by frame: ten requests at once must take as long as one."""
    client = connect()
    with proxy.injected(delay(0.2)) as fault:
        started = time.monotonic()
        for _ in range(10):
            client.ask(Api.FETCH)
        assert [client.answer() for _ in range(10)] == list(range(1, 11))
        took = time.monotonic() - started
    assert 0.4 <= took < 2.0
    assert fault.hits == 20


def test_a_throttle_is_one_budget_for_all_connections(proxy: Proxy, connect: Callable[..., Client]) -> None:
    clients = [connect(), connect()]
    with proxy.injected(throttle(400_000)):
        started = time.monotonic()
        for client in clients:
            client.ask(Api.PRODUCE, bytes(100_000))
        assert [client.answer() for client in clients] == [1, 1]
        took = time.monotonic() - started
    assert took >= 0.5  # 200 kB at 400 kB/s in one direction, then the same in the other, side by side
    started = time.monotonic()
    assert clients[0].call(Api.PRODUCE, bytes(100_000))
    assert time.monotonic() - started < took


def test_a_dropped_acknowledgement_leaves_the_request_done_and_all_else_answered(
    server: Server, proxy: Proxy, connect: Callable[..., Client]
) -> None:
    client = connect()
    with proxy.injected(drop_acknowledgements(limit=1)) as fault:
        assert not client.call(Api.PRODUCE, within_s=NEVER_S)
        assert client.call(Api.FETCH)
        assert client.call(Api.PRODUCE)  # the limit was one
    assert fault.hits == 1
    assert [header.api for header in server.seen] == [Api.PRODUCE, Api.FETCH, Api.PRODUCE]


@pytest.mark.parametrize(
    ("fault", "held"),
    [
        (hold_end_txn(), [Api.END_TXN]),
        (hold_heartbeats(), [Api.HEARTBEAT, Api.CONSUMER_GROUP_HEARTBEAT]),
        (hold([Api.OFFSET_COMMIT]), [Api.OFFSET_COMMIT]),
    ],
)
def test_held_requests_are_overtaken_and_arrive_in_their_order_when_lifted(
    server: Server, proxy: Proxy, connect: Callable[..., Client], fault: Fault, held: list[Api]
) -> None:
    client = connect()
    proxy.inject(fault)
    waiting = [client.ask(api) for api in [*held, *held]]
    assert client.call(Api.FETCH)
    assert client.answer(NEVER_S) is None
    proxy.lift(fault)
    assert [client.answer() for _ in waiting] == waiting
    assert [header.api for header in server.seen] == [Api.FETCH, *held, *held]
    assert client.call(held[0])


def test_a_held_request_arrives_even_if_its_client_has_gone(
    server: Server, proxy: Proxy, connect: Callable[..., Client]
) -> None:
    """The delayed EndTxn of Jepsen's report: its sender gave up long ago. Catches a proxy that forgets it."""
    client = connect()
    with proxy.injected(hold_end_txn()) as fault:
        client.ask(Api.END_TXN)
        wait_until(lambda: fault.hits, SOON_S, "the request to be held")
        client.socket.close()
        assert connect("next").call(Api.INIT_PRODUCER_ID)
        assert [header.api for header in server.seen] == [Api.INIT_PRODUCER_ID]
        assert proxy.connections == 2
    wait_until(lambda: len(server.seen) == 2, SOON_S, "the held request")
    assert server.seen[1].api == Api.END_TXN
    wait_until(lambda: proxy.connections == 1, SOON_S, "the old connection to end")


@pytest.mark.parametrize("make", [cut, black_hole, lambda name: delay(30.0, name), hold_heartbeats])
def test_a_fault_for_a_named_client_leaves_the_others_alone(
    proxy: Proxy, connect: Callable[..., Client], make: Callable[[str], Fault]
) -> None:
    one, other = connect("one"), connect("other")
    assert one.call(Api.FETCH)
    with proxy.injected(make("one")):
        assert other.call(Api.HEARTBEAT)
        try:
            assert not one.call(Api.HEARTBEAT, within_s=NEVER_S)
        except OSError:
            assert make is cut


def test_a_broker_that_is_down_or_hangs_up_looks_so_from_the_front(server: Server, port: int) -> None:
    with Proxy({port: free_port()}), pytest.raises(OSError, match=r"reset|ended|pipe"):
        Client(port).call(Api.FETCH)


def test_closing_it_ends_its_thread_its_connections_and_what_it_holds(server: Server, port: int) -> None:
    """Catches a proxy that leaks: the next test would run beside it."""
    with Proxy({port: server.port}) as proxy:
        client = Client(port)
        proxy.inject(hold_heartbeats())
        client.ask(Api.HEARTBEAT)
        proxy.inject(delay(60.0))
        client.ask(Api.FETCH)
        wait_until(lambda: server.open == 1, SOON_S, "the connection")
    assert not [thread for thread in threading.enumerate() if thread.name == "kafka-proxy"]
    wait_until(lambda: server.open == 0, SOON_S, "the server's side to end")
    with pytest.raises(ConnectionResetError):
        client.answer()
    with pytest.raises(ConnectionRefusedError):
        Client(port)
    with Proxy({port: server.port}):
        assert Client(port).call(Api.FETCH)
    client.socket.close()
