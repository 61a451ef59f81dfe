#!/usr/bin/env python3
"""fedlora tokenize gives the ids of Hugging Face tokenizers for tokenizers built like those of public families.

    python tests/oracle/tokenizer_families.py [--write CORPUS.txt]

tests/golden/tokenizer/families.json holds small tokenizers: the Unigram models are trained, Gemma's and Phi-3's are changed
from the Llama 2 one in that folder, the others are pre-tokenizers over its GPT-2 one. Each is compared on random texts. --write
makes the file again, with the ids of fixed texts.
"""

import json
import os
import random
import subprocess
import sys
import tempfile

import oracle

tokenizers = oracle.need("tokenizers")
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers  # noqa: E402

FOLDER = os.path.join(oracle.ROOT, "tests", "golden", "tokenizer")
MARK = "▁"
TEXTS = ["", " ", "  a  b ", "\n", "Hello world, it's the cat.", " the king\n\n\n  and queen\t!", "naïve e\u0301 \ufb01 ½ ３", "日本 語?",
         "<start_of_turn>user\nHi<end_of_turn>\n", "<|user|>\n Hi <|end|> \n<|assistant|>  x", "▁▁ ▁a <unk> <0x41> </s>", "12345 3.14 ٣",
         "I'LL WE'Re camelCase SHOUT if(x){y+=1;}//\n", "😀👩‍👩‍👧 \u00a0\u200d\u0085|", "zzzz kkkk qqqq x9", "aaaaaaaaaaaaaaaa"]

# Split patterns: o200k (Phi-4-mini), cl100k (OLMo 2, Phi-4), Llama 3 (SmolLM3), Tekken (Mistral), DeepSeek.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UP, LOW = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
O200K = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*{CONTRACTIONS}?"
         r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+")
CL100K = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
CL100K_POSSESSIVE = (r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]"
                     r"|\s+(?!\S)|\s+")
TEKKEN = (rf"[^\r\n\p{{L}}\p{{N}}]?{UP}*{LOW}+|[^\r\n\p{{L}}\p{{N}}]?{UP}+{LOW}*|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
DEEPSEEK = [r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+",
            r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*"
            r"|\s*[\r\n]+|\s+(?!\S)|\s+"]


def as_json(thing):
    return json.loads(thing.__getstate__().decode()) if not isinstance(thing, Tokenizer) else json.loads(thing.to_str())


def level(*patterns, digits=False):
    """A pre-tokenizer of a byte-level family: splits by patterns, then bytes."""
    parts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    parts += [pre_tokenizers.Split(Regex(p), "isolated", False) for p in patterns]
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not patterns))
    return {"pre_tokenizer": as_json(pre_tokenizers.Sequence(parts))}


def token(content, **flags):
    return {"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True,
            **flags}


def unigram(corpus, size, byte_fallback, normalizer, pre_tokenizer):
    """A Unigram tokenizer trained on the corpus, as the parts of its file."""
    t = Tokenizer(models.Unigram())
    t.pre_tokenizer = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=True)
    names = ["<unk>", "<s>", "</s>"] + (["<0x%02X>" % i for i in range(256)] if byte_fallback else [])
    t.train_from_iterator(corpus, trainers.UnigramTrainer(vocab_size=size + len(names), special_tokens=names, unk_token="<unk>",
                                                          show_progress=False, max_piece_length=8))
    whole = as_json(t)
    whole["added_tokens"] = [dict(a, normalized=False) for a in whole["added_tokens"] if a["id"] < 3]
    whole["model"]["vocab"] = [[text, round(score, 6)] for text, score in whole["model"]["vocab"]]
    whole["model"]["byte_fallback"] = byte_fallback
    whole["normalizer"] = normalizer and as_json(normalizer)
    whole["pre_tokenizer"] = pre_tokenizer and as_json(pre_tokenizer)
    whole["decoder"] = as_json(decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse(),
                                                  decoders.Strip(" ", 1, 0)]) if byte_fallback else
                               decoders.Metaspace(replacement=MARK, prepend_scheme="always", split=True))
    return {k: whole[k] for k in ("added_tokens", "normalizer", "pre_tokenizer", "decoder", "model")}


def tokenizers_of(corpus):
    """name, base folder, replaced parts, further added tokens"""
    replace = normalizers.Replace(" ", MARK)
    gemma = {"normalizer": as_json(replace), "pre_tokenizer": as_json(pre_tokenizers.Split(" ", "merged_with_previous", False)),
             "decoder": as_json(decoders.Sequence([decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]))}
    turns = [token("<start_of_turn>"), token("<end_of_turn>"), token("\n\n", special=False), token("\n\n\n", special=False),
             token(MARK * 2, special=False), token("<h1>", special=False)]
    phi3 = [token("<|end|>", rstrip=True), token("<|user|>", rstrip=True), token("<|assistant|>", rstrip=True),
            token("<|endoftext|>")]
    always = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="always", split=True)
    first = pre_tokenizers.Metaspace(replacement=MARK, prepend_scheme="first", split=False)
    return [
        ("unigram", "llama2", unigram(corpus, 150, True, None, always), [token("<mask>", lstrip=True)]),
        ("unigram without bytes", "llama2", unigram(corpus, 100, False, normalizers.Sequence([normalizers.NFKC()]), always), []),
        ("unigram, one word", "llama2", unigram(corpus, 120, True, None, first), turns),
        ("unigram, normalised spaces", "llama2",
         unigram(corpus, 90, True, normalizers.Sequence([normalizers.Prepend(MARK), replace]), None), []),
        ("gemma", "llama2", gemma, turns),
        ("gemma without pre-tokenizer", "llama2", dict(gemma, pre_tokenizer=None), turns),
        ("phi-3", "llama2", {}, phi3),
        ("words", "mistral", {}, [token("tool", single_word=True), token("cat", single_word=True, normalized=True, special=False),
                                  token("<r>", rstrip=True, normalized=True), token("<l>", lstrip=True, single_word=True)]),
        ("granite-3", "gpt2", level(digits=True), []),
        ("olmo-2", "gpt2", level(CL100K), []),
        ("phi-4", "gpt2", level(CL100K_POSSESSIVE), []),
        ("phi-4-mini", "gpt2", level(O200K), []),
        ("smollm3", "llama3", {}, []),
        ("tekken", "llama3", level(TEKKEN), []),
        ("deepseek-r1", "gpt2", level(*DEEPSEEK), []),
    ]


def whole_of(base, parts, added):
    with open(os.path.join(FOLDER, base, "tokenizer.json"), encoding="utf8") as file:
        whole = {**json.load(file), **parts}
    return {**whole, "added_tokens": whole["added_tokens"] + added}


def write(corpus):
    made = []
    for name, base, parts, added in tokenizers_of(corpus):
        whole = whole_of(base, parts, [])
        vocab = whole["model"]["vocab"]
        room = max(len(vocab), 1 + max(a["id"] for a in whole["added_tokens"]))
        known = {pair[0]: i for i, pair in enumerate(vocab)} if isinstance(vocab, list) else vocab
        added = [{"id": known.get(a["content"], room + i), **a} for i, a in enumerate(added)]
        t = Tokenizer.from_str(json.dumps(whole_of(base, parts, added)))
        ids = [t.encode(x, add_special_tokens=False).ids for x in TEXTS]
        decoded = [t.decode(x, skip_special_tokens=False) for x in ids]
        made.append({"name": name, "base": base, "parts": parts, "added": added, "ids": ids, "decoded": decoded})
    path = os.path.join(FOLDER, "families.json")
    with open(path, "w", encoding="utf8") as file:
        file.write('{"about": "made by tests/oracle/tokenizer_families.py with tokenizers %s",\n' % tokenizers.__version__)
        file.write(' "texts": ' + json.dumps(TEXTS) + ',\n "variants": [\n')
        file.write(",\n".join("  " + json.dumps(m, separators=(",", ":")) for m in made) + "\n ]}\n")
    print(f"{path}: {os.path.getsize(path)} bytes")


PIECES = ["the cat", " sat", "tool", "cat", " king", "'s", "'LL", "x=1;", " ", "  ", "\t", "\n", "\r\n", "12345", "½", "café", "e\u0301", "日本語",
          "한국어", "नमस्ते", "😀", "👩‍👩‍👧", "\u00a0", "\u200b", "\u200d", "\u0085", "<s>", "</s>", "<unk>", "<0x0A>", "<|end|>", "<|user|>", "<mask>", "<r>",
          "<l>", "<h1>", "<start_of_turn>", MARK, MARK * 3, "camelCase", "SHOUT", "ǅ", "İ", "ﬁ", "\x00", "_", "/", "!!"]


def random_texts(count, seed):
    r = random.Random(seed)

    def piece():
        if r.random() < 0.85:
            return r.choice(PIECES) * r.choice([1, 1, 1, 2, 5])
        return "".join(chr(r.choice([r.randrange(32, 127), r.randrange(160, 0xD800)])) for _ in range(r.randrange(1, 5)))

    return ["".join(piece() for _ in range(r.choice([1, 2, 3, 8, 20]))) for _ in range(count)]


def check(one, lines, folder):
    """The number of texts whose ids differ."""
    text = json.dumps(whole_of(one["base"], one["parts"], one["added"]))
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf8") as file:
        file.write(text)
    command = [os.path.join(oracle.PROGRAMS, "fedlora"), "tokenize", "--base", folder, "--json"]
    done = subprocess.run(command, input="".join(json.dumps(line) + "\n" for line in lines), capture_output=True, text=True,
                          check=False)
    if done.returncode != 0:
        print(f"{one['name']}: {done.stderr}")
        return 1
    got = json.loads(done.stdout)
    want = [e.ids for e in Tokenizer.from_str(text).encode_batch(lines, add_special_tokens=False)]
    bad = [(line, w, g) for line, w, g in zip(lines, want, got, strict=True) if w != g]
    print(f"{one['name']}: {len(lines)} texts, {len(bad)} differ")
    for line, w, g in sorted(bad, key=lambda x: len(x[0]))[:2]:
        print(f"  {ascii(line)}\n    expected {w}\n    got      {g}")
    return len(bad)


def main():
    if "--write" in sys.argv:
        with open(sys.argv[sys.argv.index("--write") + 1], encoding="utf8") as file:
            write(file.read()[:200000].split("\n"))
        return 0
    seed = int(os.environ.get("FEDLORA_SEED", "1"))
    print(f"seed {seed}")
    with open(os.path.join(FOLDER, "families.json"), encoding="utf8") as file:
        made = json.load(file)["variants"]
    with tempfile.TemporaryDirectory() as folder:
        return 1 if sum(check(one, random_texts(500, seed * 100 + i), folder) for i, one in enumerate(made)) else 0


if __name__ == "__main__":
    sys.exit(main())
