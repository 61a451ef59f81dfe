#!/usr/bin/env python3
"""Asks a page for tests/e2e/*.sh: http_page.py PORT PATH [body | POST | long | hold].

Prints the status, the headers and the text; with body the text alone. POST: with that method. long: with a header of
1 MB. hold: opens 60 connections, of which some send nothing and some a byte every second, and keeps them.
"""
import http.client
import socket
import sys
import time


def hold(port):
    connections = []
    for i in range(60):
        try:
            connection = socket.create_connection(("127.0.0.1", port), timeout=2)
            connection.sendall(b"GET / HTTP/1.1\r\nX: " if i % 2 else b"")
            connections.append(connection)
        except OSError:
            pass
    print("holding", len(connections), flush=True)
    while True:
        time.sleep(1)
        for connection in connections[1::2]:
            try:
                connection.sendall(b"x")
            except OSError:
                pass


def main():
    port, path, how = int(sys.argv[1]), sys.argv[2], (sys.argv + [""])[3]
    if how == "hold":
        hold(port)
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    headers = {"X-Long": "x" * 1000000} if how == "long" else {}
    try:
        connection.request("POST" if how == "POST" else "GET", path, headers=headers)
    except BrokenPipeError:
        pass  # refused before all was sent; the answer is there
    reply = connection.getresponse()
    text = reply.read().decode()
    if how != "body":
        print(reply.status)
        print(reply.headers)
    print(text, end="")


if __name__ == "__main__":
    main()
