"""Known answers for tests/unit/rng.c, from hashlib's BLAKE2b and a ChaCha20 written from RFC 8439 here.

Run: python3 tests/unit/rng_answers.py
"""
import hashlib
import math
import struct


def chacha_block(key, counter):
    """One block with a 64-bit counter and a zero nonce."""
    def quarter(s, a, b, c, d):
        for x, y, z, turn in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            s[x] = (s[x] + s[y]) & 0xFFFFFFFF
            v = s[z] ^ s[x]
            s[z] = ((v << turn) | (v >> (32 - turn))) & 0xFFFFFFFF
    start = list(struct.unpack("<4I", b"expand 32-byte k")) + list(struct.unpack("<8I", key))
    start += [counter & 0xFFFFFFFF, counter >> 32, 0, 0]
    s = list(start)
    for _ in range(10):
        for i in range(4):
            quarter(s, i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(s, i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return [(a + b) & 0xFFFFFFFF for a, b in zip(s, start)]


def words(purpose, seed, label, index, count):
    text = purpose + b"\0" + struct.pack("<Q", seed) + label + b"\0" + struct.pack("<Q", index)
    key = hashlib.blake2b(text, digest_size=32).digest()
    out = []
    block = 0
    while len(out) < count:
        out += chacha_block(key, block)
        block += 1
    return out[:count]


if __name__ == "__main__":
    # RFC 8439, 2.3.2 has a nonce; its appendix A.1 vector 1 is a zero key, counter and nonce.
    assert chacha_block(bytes(32), 0)[0] == 0xADE0B876, hex(chacha_block(bytes(32), 0)[0])
    w = words(b"lora_A", 7, b"model.layers.0.self_attn.q_proj", 3, 2000)
    print("first", ", ".join(f"0x{x:08x}" for x in w[:4]))
    print("words 127, 128, 1999", ", ".join(f"0x{w[i]:08x}" for i in (127, 128, 1999)))
    pairs = [w[2 * i] | w[2 * i + 1] << 32 for i in range(1000)]
    print("units", ", ".join(repr((p >> 11) / 2.0**53) for p in pairs[:3]))
    print("below 1000", ", ".join(str(p % 1000) for p in pairs[:8]))
    u = [(p >> 11) / 2.0**53 for p in pairs]
    print("normals", ", ".join(repr(math.sqrt(-2 * math.log(1 - u[2 * i])) * math.cos(2 * math.pi * u[2 * i + 1]))
                              for i in range(3)))
    print("uniform 0.125", ", ".join(repr(((x + 0.5) / 2**31 - 1) * 0.125) for x in w[:3]))
    print("other", ", ".join(f"0x{x:08x}" for x in words(b"", 2**64 - 1, b"", 0, 2)))
