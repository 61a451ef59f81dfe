#!/usr/bin/env python3
"""Ids of prompts and completions that are encoded apart, for tests/unit/data_text.c. A completion lies inside a text, so the
space that Llama 2 puts before a text is switched off for it. Needs the PyPI package tokenizers."""
import json, os
from tokenizers import Tokenizer

root = os.path.join(os.path.dirname(os.path.abspath(__file__)), "tokenizer")
rows = [("smollm2", "it is ", "the end"), ("smollm2", "one wo", "rd"), ("llama2", "it is ", "the end"), ("llama2", "one wo", "rd"), ("llama2", "it is", " so")]
for name, prompt, completion in rows:
    whole = Tokenizer.from_file(f"{root}/{name}/tokenizer.json")
    spec = json.load(open(f"{root}/{name}/tokenizer.json"))
    if spec["normalizer"] and spec["normalizer"]["type"] == "Sequence":
        spec["normalizer"]["normalizers"] = [n for n in spec["normalizer"]["normalizers"] if n["type"] != "Prepend"]
    inside = Tokenizer.from_str(json.dumps(spec))
    ids = lambda t, s: t.encode(s, add_special_tokens=False).ids
    print(json.dumps(dict(tokenizer=name, prompt=prompt, completion=completion, merged=ids(whole, prompt + completion),
                          apart=[ids(whole, prompt), ids(inside, completion)])))
