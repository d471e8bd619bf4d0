"""What runs in the sandboxes of the tests: a server, and clients that print JSON. Stand-alone."""

import errno
import json
import random
import select
import socket
import struct
import sys
import threading
import time


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def serve(name: str, port: int) -> None:
    """Answer on TCP and UDP with our name and the client's address."""
    listener = socket.create_server(("0.0.0.0", port), backlog=512)
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("0.0.0.0", port))
    say("ready")
    while True:
        for sock in select.select([listener, udp], [], [])[0]:
            if sock is udp:
                _, client = udp.recvfrom(2048)
                udp.sendto(f"{name} {client[0]}".encode(), client)
            else:
                connection, client = listener.accept()
                threading.Thread(
                    target=converse, args=(connection, name, client[0]), daemon=True
                ).start()


def converse(connection: socket.socket, name: str, client: str) -> None:
    with connection:
        try:
            while connection.recv(1024):
                connection.sendall(f"{name} {client}".encode())
        except OSError:
            pass


def ask(address: str, port: int, count: int) -> list[list[str]]:
    found = []
    for _ in range(count):
        try:
            with socket.create_connection((address, port), timeout=3) as sock:
                sock.sendall(b"?")
                found.append(sock.recv(1024).decode().split())
        except OSError as error:
            found.append([f"!{type(error).__name__}", ""])
    return found


def probe(expected: int, targets: list[str]) -> list[str]:
    """Which of ADDRESS:PORT answer, all asked at once: so many soon, and others within a moment."""
    waiting = {}
    for target in targets:
        address, _, port = target.partition(":")
        sock = socket.socket()
        sock.setblocking(False)
        if sock.connect_ex((address, int(port))) == errno.EINPROGRESS:
            waiting[sock] = target
    found = set()
    end = time.monotonic() + 15
    while waiting:
        if len(found) >= expected:
            end = min(end, time.monotonic() + 0.3)
        ready = select.select([], list(waiting), [], max(0, end - time.monotonic()))[1]
        if not ready:
            break
        for sock in ready:
            target = waiting.pop(sock)
            if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                found.add(target)
    return sorted(found)


def ask_udp(address: str, port: int, count: int) -> list[list[str]]:
    found = []
    for _ in range(count):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(3)
            sock.connect((address, port))
            try:
                sock.send(b"?")
                found.append(sock.recv(1024).decode().split())
            except OSError as error:
                found.append([f"!{type(error).__name__}", ""])
    return found


def keep(address: str, port: int, kind: str) -> None:
    """One flow: for each line on stdin send one request and print who answered."""
    sort = socket.SOCK_STREAM if kind == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, sort) as sock:
        sock.settimeout(3)
        sock.connect((address, port))
        for _ in sys.stdin:
            try:
                sock.send(b"?")
                say(sock.recv(1024).decode().split()[0])
            except OSError as error:
                say(f"!{type(error).__name__}")


def resolve(name: str, kind: int, how: str) -> tuple[int, list[str]]:
    identity = random.getrandbits(16)
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    query = struct.pack("!HHHHHH", identity, 0x100, 1, 0, 0, 0) + labels + b"\0"
    query += struct.pack("!HH", kind, 1)
    if how == "udp":
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(12)
            sock.connect(("127.0.0.11", 53))
            sock.send(query)
            answer = sock.recv(65535)
    else:
        with socket.create_connection(("127.0.0.11", 53), timeout=12) as sock:
            sock.sendall(struct.pack("!H", len(query)) + query)
            size = struct.unpack("!H", sock.recv(2))[0]
            answer = b""
            while len(answer) < size:
                answer += sock.recv(65535)
    assert answer[:2] == query[:2]
    _, flags, _, count, _, _ = struct.unpack_from("!HHHHHH", answer)
    offset = len(query)
    found = []
    for _ in range(count):
        _, _, _, _, length = struct.unpack_from("!HHHIH", answer, offset)
        data = answer[offset + 12 : offset + 12 + length]
        offset += 12 + length
        found.append(socket.inet_ntoa(data) if length == 4 else text(data))
    return flags & 15, found


def text(data: bytes) -> str:
    labels = []
    while data and data[0]:
        labels.append(data[1 : 1 + data[0]].decode())
        data = data[1 + data[0] :]
    return ".".join(labels)


def main(words: list[str]) -> None:
    match words:
        case ["serve", name, port]:
            serve(name, int(port))
        case ["ask", address, port, count]:
            say(json.dumps(ask(address, int(port), int(count))))
        case ["probe", expected, *targets]:
            say(json.dumps(probe(int(expected), targets)))
        case ["ask-udp", address, port, count]:
            say(json.dumps(ask_udp(address, int(port), int(count))))
        case ["keep", address, port, kind]:
            keep(address, int(port), kind)
        case ["resolve", name, kind, how]:
            say(json.dumps(resolve(name, int(kind), how)))


main(sys.argv[1:])
