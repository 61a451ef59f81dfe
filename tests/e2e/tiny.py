#!/usr/bin/env python3
"""A tiny random Llama and rows for it, for tests of whole programs: standard library only.

tiny.py model DIR [--seed N] [--vocab N]        a Hugging Face directory, no tokenizer
tiny.py rows FILE --rows N [--seed N]           {"input_ids", "labels"}; a pattern a model can learn

The rows of one seed repeat one short sequence from different starts, so a few steps of training
lower the loss clearly, and different members (seeds) learn different things.
"""

import argparse
import array
import json
import os
import random
import struct

VOCAB, HIDDEN, FFN, LAYERS, HEADS, KV_HEADS = 64, 32, 48, 2, 4, 2


def tensor_shapes(vocab):
    kv = HIDDEN // HEADS * KV_HEADS
    yield "model.embed_tokens.weight", (vocab, HIDDEN)
    for i in range(LAYERS):
        layer = f"model.layers.{i}."
        yield layer + "input_layernorm.weight", (HIDDEN,)
        yield layer + "post_attention_layernorm.weight", (HIDDEN,)
        yield layer + "self_attn.q_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "self_attn.k_proj.weight", (kv, HIDDEN)
        yield layer + "self_attn.v_proj.weight", (kv, HIDDEN)
        yield layer + "self_attn.o_proj.weight", (HIDDEN, HIDDEN)
        yield layer + "mlp.gate_proj.weight", (FFN, HIDDEN)
        yield layer + "mlp.up_proj.weight", (FFN, HIDDEN)
        yield layer + "mlp.down_proj.weight", (HIDDEN, FFN)
    yield "model.norm.weight", (HIDDEN,)
    yield "lm_head.weight", (vocab, HIDDEN)


def write_model(folder, seed, vocab):
    rng = random.Random(seed)
    os.makedirs(folder, exist_ok=True)
    header, data = {}, b""
    for name, shape in sorted(tensor_shapes(vocab)):
        count = shape[0] * (shape[1] if len(shape) == 2 else 1)
        norm = len(shape) == 1
        values = [1.0 if norm else rng.gauss(0, 0.15) for _ in range(count)]
        packed = array.array("f", values).tobytes()
        header[name] = {
            "dtype": "F32",
            "shape": list(shape),
            "data_offsets": [len(data), len(data) + len(packed)],
        }
        data += packed
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(os.path.join(folder, "model.safetensors"), "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + data)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": HIDDEN,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "hidden_act": "silu",
        "tie_word_embeddings": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "torch_dtype": "float32",
    }
    with open(os.path.join(folder, "config.json"), "w", encoding="utf-8") as file:
        json.dump(config, file, indent=1)


def write_rows(path, rows, seed):
    rng = random.Random(seed)
    cycle = rng.sample(range(3, VOCAB), 7)
    with open(path, "w", encoding="utf-8") as file:
        for _ in range(rows):
            start, length = rng.randrange(7), rng.randrange(10, 20)
            ids = [cycle[(start + i) % 7] for i in range(length)]
            file.write(json.dumps({"input_ids": ids, "labels": [-100, -100] + ids[2:]}) + "\n")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["model", "rows"])
    parser.add_argument("path")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--vocab", type=int, default=VOCAB)
    options = parser.parse_args()
    if options.what == "model":
        write_model(options.path, options.seed, options.vocab)
    else:
        write_rows(options.path, options.rows, options.seed)


if __name__ == "__main__":
    main()
