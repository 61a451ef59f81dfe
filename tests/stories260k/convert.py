#!/usr/bin/env python3
"""Turns a llama2.c model (stories260K.bin, version 0) and its tokenizer (tok512.bin) into a Hugging Face
directory: convert.py MODEL.bin TOKENIZER.bin OUT. Standard library only.

The model file is a header of seven int32 (dim, hidden, layers, heads, kv_heads, vocab, seq_len) and float32
tensors, each kind for all layers. Its q and k rows are interleaved for rotation, a pair side by side; Hugging
Face wants a head's first halves, then its second halves."""
import json
import os
import struct
import sys

MARK = "\u2581"  # what SentencePiece writes for a space


def read_model(path):
    with open(path, "rb") as f:
        data = f.read()
    dim, hidden, layers, heads, kv_heads, vocab, positions = struct.unpack_from("<7i", data)
    tied, vocab = vocab > 0, abs(vocab)
    head_dim = dim // heads
    at = 28

    def take(*shape):
        nonlocal at
        count = 1
        for side in shape:
            count *= side
        at += 4 * count
        if at > len(data):
            sys.exit(f"{path}: too short for its header")
        return shape, data[at - 4 * count:at]

    def per_layer(*shape):
        return [take(*shape) for _ in range(layers)]

    tensors = {"model.embed_tokens.weight": take(vocab, dim)}
    kinds = [("input_layernorm", (dim,)), ("self_attn.q_proj", (dim, dim)),
             ("self_attn.k_proj", (kv_heads * head_dim, dim)), ("self_attn.v_proj", (kv_heads * head_dim, dim)),
             ("self_attn.o_proj", (dim, dim)), ("post_attention_layernorm", (dim,)), ("mlp.gate_proj", (hidden, dim)),
             ("mlp.down_proj", (dim, hidden)), ("mlp.up_proj", (hidden, dim))]
    for kind, shape in kinds:
        for layer, (shape, values) in enumerate(per_layer(*shape)):
            if kind in ("self_attn.q_proj", "self_attn.k_proj"):
                values = halves(values, shape, head_dim)
            tensors[f"model.layers.{layer}.{kind}.weight"] = shape, values
    tensors["model.norm.weight"] = take(dim)
    take(positions, head_dim // 2)  # cosines and sines, which everyone computes
    take(positions, head_dim // 2)
    if not tied:
        tensors["lm_head.weight"] = take(vocab, dim)
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": dim,
              "intermediate_size": hidden, "num_hidden_layers": layers, "num_attention_heads": heads,
              "num_key_value_heads": kv_heads, "vocab_size": vocab, "max_position_embeddings": positions,
              "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": tied,
              "attention_bias": False, "mlp_bias": False, "bos_token_id": 1, "eos_token_id": 2,
              "torch_dtype": "float32"}
    return config, tensors


def halves(values, shape, head_dim):
    size = 4 * shape[1]
    rows = [values[i * size:(i + 1) * size] for i in range(shape[0])]
    order = [head + pair * 2 + half for head in range(0, shape[0], head_dim)
             for half in range(2) for pair in range(head_dim // 2)]
    return b"".join(rows[i] for i in order)


def write_safetensors(path, tensors):
    header, at = {"__metadata__": {"format": "pt"}}, 0
    for name in sorted(tensors):
        shape, values = tensors[name]
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [at, at + len(values)]}
        at += len(values)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for name in sorted(tensors):
            f.write(tensors[name][1])


def read_pieces(path, count):
    """(text, score) of each id; the file writes a space as itself."""
    with open(path, "rb") as f:
        data = f.read()
    at, pieces = 4, []
    for _ in range(count):
        score, size = struct.unpack_from("<fi", data, at)
        text = data[at + 8:at + 8 + size].decode()
        at += 8 + size
        pieces.append((text.strip("\n") if text in ("\n<s>\n", "\n</s>\n") else text.replace(" ", MARK), score))
    return pieces


def merges_of(pieces, special):
    """SentencePiece joins the pair whose whole has the best score: the same as these merges in this order."""
    ids = {text: i for i, (text, _) in enumerate(pieces) if i not in special}
    merges = []
    for text, i in ids.items():
        if text.startswith("<0x"):
            continue
        splits = [(text[:k], text[k:]) for k in range(1, len(text)) if text[:k] in ids and text[k:] in ids]
        splits.sort(key=lambda s: (ids[s[0]], ids[s[1]]))
        merges += [(-pieces[i][1], i, s) for s in splits]
    merges.sort(key=lambda m: m[:2])
    return [list(split) for _, _, split in merges]


def tokenizer_of(pieces):
    special = (0, 1, 2)
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": [{"id": i, "content": pieces[i][0], "single_word": False, "lstrip": False, "rstrip": False,
                          "normalized": False, "special": True} for i in special],
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": MARK},
            {"type": "Replace", "pattern": {"String": " "}, "content": MARK}]},
        "pre_tokenizer": None,
        "post_processor": None,
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": MARK}, "content": " "}, {"type": "ByteFallback"},
            {"type": "Fuse"}, {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": {"type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
                  "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
                  "vocab": {text: i for i, (text, _) in enumerate(pieces)}, "merges": merges_of(pieces, special)},
    }


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    model, tokenizer, out = sys.argv[1:]
    config, tensors = read_model(model)
    os.makedirs(out, exist_ok=True)
    write_safetensors(os.path.join(out, "model.safetensors"), tensors)
    files = {"config.json": config, "tokenizer.json": tokenizer_of(read_pieces(tokenizer, config["vocab_size"])),
             "tokenizer_config.json": {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                                       "unk_token": "<unk>", "model_max_length": config["max_position_embeddings"]}}
    for name, value in files.items():
        with open(os.path.join(out, name), "w", encoding="utf-8") as f:
            json.dump(value, f, ensure_ascii=False, indent=1)


if __name__ == "__main__":
    main()
