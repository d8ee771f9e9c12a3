"""A DNS client of the standard library alone (RFC 1035), run as a script inside a sandbox.

    python3 -c TEXT ADDRESS TIMES NAME TYPE [NAME TYPE ...]

It asks each question TIMES times by UDP, and prints a line of JSON for each question, of the last answer:
``{"code": ..., "answers": [[owner, type, data], ...], "median": seconds, "longest": seconds}``.
"""

import json
import socket
import statistics
import struct
import sys
import time

TYPES = {"A": 1, "CNAME": 5, "SOA": 6, "PTR": 12, "AAAA": 28, "SRV": 33}
NAMES = {number: name for name, number in TYPES.items()}
CODES = {0: "NOERROR", 2: "SERVFAIL", 3: "NXDOMAIN", 5: "REFUSED"}
SECONDS = 5.0


def question(number: int, name: str, kind: str) -> bytes:
    """Return the message that asks for a name."""
    labels = b"".join(bytes([len(label)]) + label.encode() for label in name.rstrip(".").split("."))
    return struct.pack(">6H", number, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">xHH", TYPES[kind], 1)


def read_name(message: bytes, at: int) -> tuple[str, int]:
    """Return the name at a place, and the place behind it."""
    labels, end = [], 0
    while length := message[at]:
        if length >= 0xC0:
            end = end or at + 2
            at = struct.unpack_from(">H", message, at)[0] & 0x3FFF
            continue
        labels.append(message[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels), end or at + 1


def data(message: bytes, kind: str, at: int, length: int) -> str:
    """Return the data of a record as text."""
    if kind == "A":
        return socket.inet_ntoa(message[at : at + length])
    if kind in {"CNAME", "PTR"}:
        return read_name(message, at)[0]
    if kind == "SRV":
        port = struct.unpack_from(">4xH", message, at)[0]
        return f"{port} {read_name(message, at + 6)[0]}"
    return message[at : at + length].hex()


def parse(message: bytes) -> tuple[str, list[list[str]]]:
    """Return the code of an answer, and its records in the answer's first section."""
    _, flags, questions, count, _, _ = struct.unpack_from(">6H", message)
    at, found = 12, []
    for _ in range(questions):
        at = read_name(message, at)[1] + 4
    for _ in range(count):
        owner, at = read_name(message, at)
        number, length = struct.unpack_from(">H6xH", message, at)
        kind = NAMES.get(number, str(number))
        found.append([owner, kind, data(message, kind, at + 10, length)])
        at += 10 + length
    return CODES.get(flags & 0xF, str(flags & 0xF)), found


def main() -> None:
    """Ask the questions of the command line."""
    address, times, *words = sys.argv[1:]
    client = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    client.settimeout(SECONDS)
    client.connect((address, 53))
    for name, kind in zip(words[::2], words[1::2], strict=True):
        seconds, answer = [], b""
        for number in range(int(times)):
            message = question(number, name, kind)
            began = time.monotonic()
            client.send(message)
            while (answer := client.recv(4096))[:2] != message[:2]:
                pass
            seconds.append(time.monotonic() - began)
        code, answers = parse(answer)
        figures = {"median": statistics.median(seconds), "longest": max(seconds)}
        sys.stdout.write(json.dumps({"code": code, "answers": answers, **figures}) + "\n")


if __name__ == "__main__":
    main()
