#!/usr/bin/env python3
"""An HTTP proxy for tests: proxy.py LOG [--status N] [--credentials USER:PASSWORD].

Prints its port, then answers CONNECT on 127.0.0.1. Every host is this machine, so names that only the proxy knows can be
used. With --status it refuses every request with that status; with --credentials it answers 407 without them. Each
request is one line in LOG: the request line, and the status of the answer."""
import argparse
import base64
import socket
import sys
import threading


def pump(source, target):
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        pass


def answer(client, options):
    head = b""
    while b"\r\n\r\n" not in head:
        data = client.recv(4096)
        if not data:
            return
        head += data
    request, *headers = head.split(b"\r\n\r\n")[0].decode().split("\r\n")
    status = options.status
    if options.credentials:
        wanted = "Basic " + base64.b64encode(options.credentials.encode()).decode()
        given = [h.split(":", 1)[1].strip() for h in headers if h.lower().startswith("proxy-authorization:")]
        if given != [wanted]:
            status = 407
    with open(options.log, "a") as log:
        log.write(f"{request} {status}\n")
    if status != 200:
        client.sendall(f"HTTP/1.1 {status} Refused by the test\r\nContent-Length: 0\r\n\r\n".encode())
        client.close()
        return
    server = socket.create_connection(("127.0.0.1", int(request.split()[1].rsplit(":", 1)[1])))
    client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
    threading.Thread(target=pump, args=(client, server), daemon=True).start()
    pump(server, client)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("log")
    parser.add_argument("--status", type=int, default=200)
    parser.add_argument("--credentials")
    options = parser.parse_args()
    listener = socket.create_server(("127.0.0.1", 0))
    print(listener.getsockname()[1], flush=True)
    sys.stdout.close()
    while True:
        client, _ = listener.accept()
        threading.Thread(target=answer, args=(client, options), daemon=True).start()


main()
