#!/usr/bin/env python3
"""Makes the tokenizer and chat cases in this folder.

Small vocabularies of every family are trained with Hugging Face tokenizers; their ids come from that
library for tokenizer.json, and from llama.cpp (llama-cpp-python) for GGUF files. Chats are rendered by
transformers from the families' published Jinja templates. Needs tokenizers, transformers, gguf and
llama-cpp-python; run it only to change the cases:

    make.py CORPUS.txt     (any few hundred kilobytes of English text)
"""
import ctypes
import json
import os
import sys

import gguf
import llama_cpp
from tokenizers import (AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers,
                        trainers)

HERE = os.path.dirname(os.path.abspath(__file__))
LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
          r"|\s*[\r\n]+|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace("{1,3}", "")
VOCAB = 480

TEXTS = [
    "", " ", "  ", "\n", "\t", "\n\n", " \n", "\r\n", "a", " a", "Hello world", " Hello  world ",
    "the cat sat on the mat", "It's they're I'LL we've don't WE'D 'Tis ’s 'ſ it'sa", "'s's's",
    "0", "42", "123", "1234", "12345678901234567890", "3.14 1,000 2024-11-23", "½ Ⅷ ² ３４ ٣٤٥ १२३",
    "x=1;y=[2,3];\n\tif (a<=b) { i++; }\n", "def f(x):\n    return x**2  # square\n", "!!! ... --- ???",
    "#include <stdio.h>\r\n\r\nint main()", "  lead", "trail   ", "a \n b \n\n c\t\td", "     x     y",
    "naïve café déjà vu", "cafe\u0301 a\u0323\u0302 \u1e69 s\u0323\u0307", "\u212b \u2126 \ufb01 \u00bd",
    "ǅ ß İ ſ ﬁ ŸÿÆæ", "日本語のテキスト、中文字符。한국어 각 각", "مرحبا بالعالم שלום", "привет Ελλάδα नमस्ते ไม่",
    "😀👩‍👩‍👧‍👦🇫🇷👍🏽 1️⃣", "\u00a0\u2003\u2028\u3000\u180e\u200b\ufeff|", "a\u0085b\u000bc\u000cd\u001ce",
    "\x01\x7f\u0080", "\ue000\ufffd\U0010ffff", "<s>hi</s>", "<|im_start|>user\nHi<|im_end|>\n", "a<s>b <s> c",
    "<|im_start|><|im_start|>", "<|im_start", "x<|im_end|>y  <|im_end|>  z", "<think>\nno\n</think>\n\nyes",
    "a <think> b<think>c", "▁ ▁▁ Ġ <0x0A> <unk>", "▁the the▁ cat▁sat", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious", "http://a.b/c?d=e&f=%20#g", "A" * 40 + "b" * 40, " " * 60,
    "word " * 20, "\n \n  \n   \n",
]
FEW = TEXTS[1::4] + [TEXTS[13], TEXTS[45]]
SPECIAL = ["<|im_start|>", "<|im_end|>", "<s>", "</s>"]


def byte_level(regex=None, digits=False, nfc=False, whole=False):
    t = Tokenizer(models.BPE(ignore_merges=whole))
    if nfc:
        t.normalizer = normalizers.NFC()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=regex is None)
    parts = [pre_tokenizers.Digits(individual_digits=True)] if digits else []
    parts += [pre_tokenizers.Split(Regex(regex), "isolated", False)] if regex else []
    t.pre_tokenizer = pre_tokenizers.Sequence(parts + [level]) if parts else level
    t.decoder = decoders.ByteLevel()
    return t, trainers.BpeTrainer(vocab_size=VOCAB, special_tokens=SPECIAL, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def byte_fallback(legacy):
    t = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    if legacy:
        t.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        t.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    t.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
                                   decoders.Strip(" ", 1, 0)])
    names = ["<unk>", "<s>", "</s>"] + ["<0x%02X>" % i for i in range(256)]
    return t, trainers.BpeTrainer(vocab_size=VOCAB + 150, special_tokens=names, show_progress=False,
                                  limit_alphabet=60)


def as_json(t):
    return json.loads(t.to_str())


def save(name, t, corpus, trainer, byte_names=False):
    """Trains on words, so that no token holds a space inside, and writes the directory."""
    if byte_names:
        words = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
        words.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
        words.train_from_iterator(corpus, trainer)
        trained = as_json(words)["model"]
        whole = as_json(t)
        whole["model"]["vocab"], whole["model"]["merges"] = trained["vocab"], trained["merges"]
        whole["added_tokens"] = [a for a in as_json(words)["added_tokens"] if a["id"] < 3]
        t = Tokenizer.from_str(json.dumps(whole))
    else:
        t.train_from_iterator(corpus, trainer)
        t.add_tokens([AddedToken("<think>", normalized=False, special=False),
                      AddedToken("</think>", normalized=False, special=False)])
    os.makedirs(os.path.join(HERE, name), exist_ok=True)
    model = as_json(t)
    if name == "gpt2":  # the older form of merges
        model["model"]["merges"] = [" ".join(m) for m in model["model"]["merges"]]
    with open(os.path.join(HERE, name, "tokenizer.json"), "w") as f:
        json.dump(model, f, ensure_ascii=False, separators=(",", ":"))
    bos, eos = ("<s>", "</s>") if byte_names else ("<|im_start|>", "<|im_end|>")
    with open(os.path.join(HERE, name, "tokenizer_config.json"), "w") as f:
        json.dump({"bos_token": bos, "eos_token": {"content": eos}}, f)
    return t


def ids_of(t):
    out = {}
    for key, plain in (("special", False), ("plain", True)):
        t.encode_special_tokens = plain
        out[key] = [t.encode(x, add_special_tokens=False).ids for x in TEXTS]
    out["decoded"] = [t.decode(i, skip_special_tokens=False) for i in out["special"]]
    return out


def write_gguf(name, t, pre):
    model = as_json(t)["model"]
    vocab = t.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    kinds = [3 if x in SPECIAL else 4 if "think" in x else 1 for x in tokens]
    path = os.path.join(HERE, name)
    w = gguf.GGUFWriter(path, "llama")
    w.add_tokenizer_model("gpt2" if pre else "llama")
    if pre:
        w.add_tokenizer_pre(pre)
        w.add_token_merges([" ".join(m) for m in model["merges"]])
    else:
        rank = {"".join(m): i for i, m in reversed(list(enumerate(model["merges"])))}
        w.add_token_scores([float(-rank[x]) if x in rank else -1000.0 for x in tokens])
        kinds = [2 if i == 0 else 3 if i < 3 else 6 if i < 259 else 1 for i in range(len(tokens))]
    w.add_token_list(tokens)
    w.add_token_types(kinds)
    w.add_bos_token_id(vocab["<s>"])
    w.add_eos_token_id(vocab["</s>"])
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.close()
    return path


def gguf_ids(path):
    llama = llama_cpp.Llama(model_path=path, vocab_only=True, verbose=False)
    vocab = llama_cpp.llama_model_get_vocab(llama.model)
    out = {}
    for key, special in (("special", True), ("plain", False)):
        out[key] = []
        for text in TEXTS:
            data = text.encode()
            room = (llama_cpp.llama_token * (2 * len(data) + 16))()
            n = llama_cpp.llama_tokenize(vocab, data, len(data), room, len(room), False, special)
            out[key].append(list(room[:n]))
    return out


CHATML = ("{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>"
          "system\\nSYSTEM<|im_end|>\\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\\n' + message['content']"
          " + '<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
          "{% endif %}")
TEMPLATES = {
    "smollm2": CHATML.replace("SYSTEM", "You are a helpful AI assistant named SmolLM, trained by Hugging Face"),
    "qwen2": CHATML.replace("SYSTEM", "You are a helpful assistant."),
    "qwen2.5": """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}
        {{- messages[0]['content'] }}
    {%- else %}
        {{- 'You are Qwen, created by Alibaba Cloud. You are a helpful assistant.' }}
    {%- endif %}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
""",
    "chatml": "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + "
              "'<|im_end|>' + '\\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
    "qwen3": """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string and not(message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
        {%- set ns.multi_step_tool = false %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}
        {%- set content = message.content %}
    {%- else %}
        {%- set content = '' %}
    {%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning_content = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning_content = message.reasoning_content %}
        {%- else %}
            {%- if '</think>' in content %}
                {%- set reasoning_content = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
                {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
            {%- endif %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {%- if loop.last or (not loop.last and reasoning_content) %}
                {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning_content.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
            {%- else %}
                {{- '<|im_start|>' + message.role + '\\n' + content }}
            {%- endif %}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}""",
    "llama2": "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = "
              "messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}"
              "{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
              "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
              "{% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
              "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}"
              "{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
              "{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}",
    "llama3": "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' "
              "+ message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' %}"
              "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
              "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}",
    "llama3.1": """{{- bos_token }}
{%- if not date_string is defined %}
    {%- set date_string = "26 Jul 2024" %}
{%- endif %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
""",
    "mistral v0.2": "{{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}"
                    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
                    "{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}"
                    "{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}"
                    "{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}",
    "mistral v0.1 new": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}

{{- bos_token }}
{%- for message in loop_messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('After the optional system message, conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message["role"] == "user" %}
        {%- if loop.first and system_message is defined %}
            {{- " [INST] " + system_message + "\\n\\n" + message["content"] + " [/INST]" }}
        {%- else %}
            {{- " [INST] " + message["content"] + " [/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"] + eos_token}}
    {%- else %}
        {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial optional system message!") }}
    {%- endif %}
{%- endfor %}
""",
    "mistral v0.3": """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
""",
    "tinyllama": "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
                 "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
                 "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
                 "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}",
}
U, A, S = "user", "assistant", "system"
TALKS = [
    [(U, "What is 2+2?")],
    [(U, " padded \n"), (A, "  Four.\n")],
    [(S, "Be brief."), (U, "Hi"), (A, "Hello!"), (U, "Bye")],
    [(S, " Be kind.\n"), (U, "Hi"), (A, "Hello!"), (U, "And?"), (A, "That's all.")],
    [(U, "Think"), (A, "<think>\nhm\n</think>\n\nDone."), (U, "Again"), (A, "<think>\n\nwell\n</think>\nOK.")],
]


def chats():
    from transformers.utils.chat_template_utils import render_jinja_template
    out = []
    for name, jinja in TEMPLATES.items():
        for talk in TALKS:
            messages = [{"role": r, "content": c} for r, c in talk]
            for generate in (False, True):
                case = {"template": name, "messages": messages, "generate": generate}
                try:
                    text, _ = render_jinja_template([messages], chat_template=jinja, add_generation_prompt=generate,
                                                    bos_token="<s>", eos_token="</s>")
                    case["rendered"] = text[0]
                except Exception as e:  # the template refuses
                    case["refused"] = str(e)
                out.append(case)
    return {"templates": TEMPLATES, "cases": out}


LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
BARE = dict(LEVEL, use_regex=False)


def split(pattern, behavior, invert=False, kind="Regex"):
    return {"type": "Split", "pattern": {kind: pattern}, "behavior": behavior, "invert": invert}


def sequence(*parts):
    return {"type": "Sequence", "pretokenizers": list(parts)}


def normal(*parts):
    return {"type": "Sequence", "normalizers": list(parts)}


def added(content, **flags):
    return dict({"content": content, "single_word": False, "lstrip": False, "rstrip": False, "normalized": True,
                 "special": False}, **flags)


REPLACE = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
VARIANTS = [  # (base, what of tokenizer.json is replaced, added tokens)
    ("gpt2", {"pre_tokenizer": dict(LEVEL, add_prefix_space=True)}, []),
    ("gpt2", {"pre_tokenizer": BARE}, []),
    ("gpt2", {"pre_tokenizer": sequence({"type": "Digits", "individual_digits": False}, LEVEL)}, []),
    ("gpt2", {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Isolated"}, BARE)}, []),
    ("gpt2", {"pre_tokenizer": sequence({"type": "Punctuation", "behavior": "Contiguous"}, LEVEL)}, []),
    ("gpt2", {"pre_tokenizer": sequence({"type": "WhitespaceSplit"}, BARE)}, []),
    ("gpt2", {"pre_tokenizer": sequence({"type": "Whitespace"}, BARE)}, []),
    ("gpt2", {"pre_tokenizer": sequence({"type": "CharDelimiterSplit", "delimiter": "a"}, BARE)}, []),
    *[("gpt2", {"pre_tokenizer": sequence(split(r"\d|\s", b, i), BARE)}, [])
      for b in ("Isolated", "Removed", "MergedWithPrevious", "MergedWithNext", "Contiguous") for i in (False, True)],
    ("gpt2", {"pre_tokenizer": sequence(split(" ", "MergedWithNext", kind="String"), BARE)}, []),
    ("gpt2", {"pre_tokenizer": sequence(split("(?=[A-Z])", "Isolated"), BARE)}, []),
    ("gpt2", {"normalizer": {"type": "NFKC"}}, []),
    ("gpt2", {"normalizer": {"type": "NFD"}}, []),
    ("gpt2", {"normalizer": {"type": "NFKD"}}, []),
    ("gpt2", {"normalizer": {"type": "Lowercase"}}, [added("HELLO"), added("World", normalized=False)]),
    ("gpt2", {"normalizer": normal({"type": "Strip", "strip_left": True, "strip_right": True}, {"type": "NFC"})}, []),
    ("gpt2", {"normalizer": {"type": "Strip", "strip_left": False, "strip_right": True}}, []),
    ("gpt2", {}, [added("the", single_word=True), added("cat", lstrip=True), added("mat", rstrip=True)]),
    ("gpt2", {}, [added("a", lstrip=True, rstrip=True, special=True, normalized=False), added("ab"), added("abc")]),
    ("gpt2", {}, [added("<|im", normalized=False), added("  "), added("   "), added("\n\n", normalized=False)]),
    ("llama2", {"normalizer": REPLACE}, []),
    ("llama2", {"normalizer": {"type": "Prepend", "prepend": "▁"}}, []),
    ("llama2", {}, [added("cat"), added("▁sat"), added("the ", normalized=False), added("<mask>", lstrip=True)]),
    *[("llama2", {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": p,
                                                        "split": s}}, [])
      for p in ("always", "first", "never") for s in (False, True)],
    ("llama2", {"normalizer": None, "pre_tokenizer": {"type": "Metaspace", "replacement": "_",
                                                      "prepend_scheme": "always", "split": True}}, []),
]


def variants(made):
    """Parts of tokenizer.json that the families do not use, each on a small base."""
    out = []
    for base, parts, tokens in VARIANTS:
        whole = as_json(made[base])
        whole.update(parts)
        known = made[base].get_vocab()  # what is already a token keeps its id
        new = [a["content"] for a in tokens if a["content"] not in known]
        tokens = [dict(a, id=known.get(a["content"], len(known) + new.index(a["content"]) if a["content"] in new else 0))
                  for a in tokens]
        whole["added_tokens"] += tokens
        t = Tokenizer.from_str(json.dumps(whole))
        ids = [t.encode(x, add_special_tokens=False).ids for x in FEW]
        out.append({"base": base, "parts": parts, "added": tokens, "ids": ids})
    return out


def dump(name, value):
    with open(os.path.join(HERE, name), "w") as f:
        json.dump(value, f, ensure_ascii=True, separators=(",", ":"))
        f.write("\n")


def main():
    corpus = open(sys.argv[1], encoding="utf8").read()[:400000].split("\n")
    corpus += TEXTS[11:]
    made = {
        "gpt2": save("gpt2", *[byte_level()[0], corpus, byte_level()[1]]),
        "llama3": save("llama3", *[byte_level(LLAMA3, whole=True)[0], corpus, byte_level()[1]]),
        "qwen2": save("qwen2", *[byte_level(QWEN2, nfc=True)[0], corpus, byte_level()[1]]),
        "smollm2": save("smollm2", *[byte_level(digits=True)[0], corpus, byte_level()[1]]),
        "llama2": save("llama2", *[byte_fallback(True)[0], corpus, byte_fallback(True)[1]], True),
        "mistral": save("mistral", *[byte_fallback(False)[0], corpus, byte_fallback(False)[1]], True),
    }
    ids = {name: ids_of(t) for name, t in made.items()}
    for name, source, pre in (("gpt2.gguf", "gpt2", "gpt-2"), ("llama3.gguf", "llama3", "llama-bpe"),
                              ("qwen2.gguf", "qwen2", "qwen2"), ("smollm2.gguf", "smollm2", "smollm"),
                              ("default.gguf", "gpt2", "default"), ("falcon.gguf", "gpt2", "falcon"),
                              ("llama2.gguf", "llama2", None)):
        ids[name] = gguf_ids(write_gguf(name, made[source], pre))
    dump("ids.json", {"texts": TEXTS, "ids": ids})
    dump("variants.json", {"texts": FEW, "variants": variants(made)})
    dump("chats.json", chats())


main()
