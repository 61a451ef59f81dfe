"""HTTP/2 over TLS by hand, as far as attacks and an honest caller need it: no library of HTTP/2 sends broken frames."""
import socket
import ssl
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM = ACK = 1
END_HEADERS = 4
HEALTH = "/grpc.health.v1.Health/Check"


def frame(kind, flags=0, stream=0, payload=b""):
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def text(value):
    data = value.encode()
    assert len(data) < 127
    return bytes([len(data)]) + data


def block(path=HEALTH, extra=()):
    """A header block of literals that enter no table."""
    fields = [(":method", "POST"), (":scheme", "https"), (":path", path), (":authority", "x"),
              ("te", "trailers"), ("content-type", "application/grpc"), *extra]
    return b"".join(b"\0" + text(name) + text(value) for name, value in fields)


def call(stream, path=HEALTH):
    """A whole unary call with an empty message."""
    return (frame(HEADERS, END_HEADERS, stream, block(path)) + frame(DATA, END_STREAM, stream, b"\0" * 5))


class Client:
    """A connection. An honest caller uses check(); attacks write frames themselves."""

    def __init__(self, address, ca, cert, timeout=10):
        host, port = address.rsplit(":", 1)
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(cert + ".pem", cert + ".key")
        context.set_alpn_protocols(["h2"])
        raw = socket.create_connection((host, int(port)), timeout=timeout)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = context.wrap_socket(raw, server_hostname=host)
        self.stream = -1
        self.rest = b""
        self.leaves = False  # the server has sent GOAWAY
        self.socket.sendall(PREFACE + frame(SETTINGS) + frame(WINDOW_UPDATE, 0, 0, struct.pack(">I", 1 << 24)))

    def next_stream(self):
        self.stream += 2
        return self.stream

    def send(self, data):
        self.socket.sendall(data)

    def receive(self):
        """The next frame: type, flags, stream, payload. Acknowledges settings and pings."""
        while True:
            if len(self.rest) >= 9:
                size = int.from_bytes(self.rest[:3], "big")
                if len(self.rest) >= 9 + size:
                    kind, flags = self.rest[3], self.rest[4]
                    stream = int.from_bytes(self.rest[5:9], "big")
                    payload, self.rest = self.rest[9:9 + size], self.rest[9 + size:]
                    if kind == GOAWAY:
                        self.leaves = True
                    if kind in (SETTINGS, PING) and not flags & ACK:
                        self.send(frame(kind, ACK, 0, payload if kind == PING else b""))
                    return kind, flags, stream, payload
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server has closed the connection")
            self.rest += data

    def check(self):
        """One call of the health service; returns when it has been answered."""
        stream = self.next_stream()
        self.send(call(stream))
        while True:
            kind, flags, of, _ = self.receive()
            if of == stream and (kind == RST_STREAM or flags & END_STREAM and kind in (DATA, HEADERS)):
                return

    def close(self):
        self.socket.close()
