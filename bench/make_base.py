#!/usr/bin/env python3
"""Writes a random base model of a given shape, to measure memory and speed where no real model of that size is at
hand. The values are random, so the loss means nothing.

  bench/make_base.py 260k DIR       the shape of stories260K, 0.5 MB
  bench/make_base.py 135m DIR       SmolLM2's shape (135 M) as a Hugging Face directory in bfloat16, 0.3 GB
  bench/make_base.py 1b DIR         TinyLlama's shape (1.1 B), 2.2 GB
  bench/make_base.py 8b DIR         the shape of Llama 3 8B, 16 GB
  bench/make_base.py 8b FILE.gguf   the same as a GGUF file in Q4_K, 4.5 GB
  bench/make_base.py tiny DIR       a few layers, to test programs that need a model
"""

import array
import json
import os
import random
import struct
import sys

SHAPES = {
    "tiny": dict(layers=2, d=64, ffn=96, heads=2, kv=1, vocab=200, theta=10000.0, tied=True),
    "260k": dict(layers=5, d=64, ffn=172, heads=8, kv=4, vocab=512, theta=10000.0, tied=True),
    "135m": dict(layers=30, d=576, ffn=1536, heads=9, kv=3, vocab=49152, theta=100000.0, tied=True),
    "1b": dict(layers=22, d=2048, ffn=5632, heads=32, kv=4, vocab=32000, theta=10000.0),
    "8b": dict(layers=32, d=4096, ffn=14336, heads=32, kv=8, vocab=128256, theta=500000.0),
}
HUGGING_FACE = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip
POOL_VALUES = 1 << 20  # values of the random pool that all matrices repeat, each from another place


def tensors(s):
    """(GGUF name, rows, columns) of every tensor; a norm has one row."""
    d, kv = s["d"], s["d"] // s["heads"] * s["kv"]
    yield "token_embd", s["vocab"], d
    for i in range(s["layers"]):
        yield f"blk.{i}.attn_norm", 1, d
        yield f"blk.{i}.attn_q", d, d
        yield f"blk.{i}.attn_k", kv, d
        yield f"blk.{i}.attn_v", kv, d
        yield f"blk.{i}.attn_output", d, d
        yield f"blk.{i}.ffn_norm", 1, d
        yield f"blk.{i}.ffn_gate", s["ffn"], d
        yield f"blk.{i}.ffn_up", s["ffn"], d
        yield f"blk.{i}.ffn_down", d, s["ffn"]
    yield "output_norm", 1, d
    if not s.get("tied"):
        yield "output", s["vocab"], d


def pool_bf16(rng):
    """Normal values with standard deviation 0.02, cut to bfloat16."""
    some = array.array("f", (rng.gauss(0.0, 0.02) for _ in range(1 << 16))).tobytes()
    return b"".join(some[i + 2 : i + 4] for i in range(0, len(some), 4)) * (POOL_VALUES >> 16)


def pool_q4_k(rng):
    """Blocks of 256 values: d, dmin (half precision), 12 bytes of scales, 128 of numbers. d and dmin are chosen so
    that the values are about as large as those of a trained model."""
    d, low = struct.pack("<e", 7e-5), struct.pack("<e", 5e-4)
    return b"".join(d + low + rng.randbytes(140) for _ in range(POOL_VALUES // 256))


def write_matrix(file, pool, size, rng, unit):
    at = rng.randrange(len(pool) // unit) * unit
    while size > 0:
        part = pool[at : at + size]
        file.write(part)
        size -= len(part)
        at = 0


def text(value):
    raw = value.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key, value):
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    return text(key) + (
        struct.pack("<If", 6, value) if isinstance(value, float) else struct.pack("<II", 4, value)
    )


def write_gguf(path, s, rng):
    pairs = {
        "general.architecture": "llama",
        "llama.block_count": s["layers"],
        "llama.embedding_length": s["d"],
        "llama.feed_forward_length": s["ffn"],
        "llama.attention.head_count": s["heads"],
        "llama.attention.head_count_kv": s["kv"],
        "llama.context_length": 4096,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": s["theta"],
    }
    infos, at, every = b"", 0, list(tensors(s))
    sizes = []
    for name, rows, cols in every:
        plain = rows == 1
        dims = [cols] if plain else [cols, rows]
        size = cols * 4 if plain else rows * cols // 256 * 144
        infos += text(name + ".weight") + struct.pack("<I", len(dims))
        infos += b"".join(struct.pack("<Q", n) for n in dims)
        infos += struct.pack("<IQ", 0 if plain else 12, at)
        sizes.append(size)
        at += (size + 31) // 32 * 32
    head = b"GGUF" + struct.pack("<IQQ", 3, len(every), len(pairs))
    head += b"".join(pair(k, v) for k, v in pairs.items()) + infos
    pool = pool_q4_k(rng)
    with open(path, "wb") as file:
        file.write(head + bytes(-len(head) % 32))
        for (_, rows, cols), size in zip(every, sizes):
            if rows == 1:
                file.write(struct.pack("<f", 1.0) * cols)
            else:
                write_matrix(file, pool, size, rng, 144)
            file.write(bytes(-size % 32))


def hugging_face_name(name):
    if name in ("token_embd", "output_norm", "output"):
        return {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}[name]
    _, layer, module = name.split(".")
    return f"model.layers.{layer}.{HUGGING_FACE[module]}"


def write_directory(path, s, rng):
    os.makedirs(path, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "hidden_size": s["d"],
        "intermediate_size": s["ffn"],
        "num_hidden_layers": s["layers"],
        "num_attention_heads": s["heads"],
        "num_key_value_heads": s["kv"],
        "vocab_size": s["vocab"],
        "rms_norm_eps": 1e-5,
        "rope_theta": s["theta"],
        "max_position_embeddings": 4096,
        "tie_word_embeddings": s.get("tied", False),
        "torch_dtype": "bfloat16",
    }
    with open(os.path.join(path, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)
    header, at = {}, 0
    for name, rows, cols in tensors(s):
        size = rows * cols * 2
        shape = [cols] if rows == 1 else [rows, cols]
        header[hugging_face_name(name) + ".weight"] = {
            "dtype": "BF16", "shape": shape, "data_offsets": [at, at + size],
        }  # fmt: skip
        at += size
    raw = json.dumps(header).encode()
    raw += b" " * (-len(raw) % 8)
    pool = pool_bf16(rng)
    with open(os.path.join(path, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for _, rows, cols in tensors(s):
            if rows == 1:
                file.write(b"\x80\x3f" * cols)
            else:
                write_matrix(file, pool, rows * cols * 2, rng, 2)


def main():
    if len(sys.argv) != 3 or sys.argv[1] not in SHAPES:
        sys.exit(__doc__)
    rng = random.Random(1)
    write = write_gguf if sys.argv[2].endswith(".gguf") else write_directory
    write(sys.argv[2], SHAPES[sys.argv[1]], rng)


if __name__ == "__main__":
    main()
