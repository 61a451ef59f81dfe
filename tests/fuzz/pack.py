#!/usr/bin/env python3
"""Small corpora in one file: each input after its size in four bytes, little endian.

pack.py pack FILE FOLDER     the smallest inputs of the folder, at most BYTES_MAX in all
pack.py unpack FILE FOLDER
"""
import hashlib
import os
import struct
import sys

BYTES_MAX = 6000


def pack(path, folder):
    names = os.listdir(folder)
    inputs = sorted((open(os.path.join(folder, n), "rb").read() for n in names), key=lambda b: (len(b), b))
    out = b""
    for data in inputs:
        if len(out) + 4 + len(data) > BYTES_MAX:
            break
        out += struct.pack("<I", len(data)) + data
    open(path, "wb").write(out)


def unpack(path, folder):
    packed = open(path, "rb").read()
    at = 0
    while at < len(packed):
        (size,) = struct.unpack_from("<I", packed, at)
        data = packed[at + 4:at + 4 + size]
        at += 4 + size
        open(os.path.join(folder, "pack-" + hashlib.sha1(data).hexdigest()), "wb").write(data)


if __name__ == "__main__":
    {"pack": pack, "unpack": unpack}[sys.argv[1]](sys.argv[2], sys.argv[3])
