#!/usr/bin/env python3
"""tests/golden/chat/cases.json and expressions.json are what jinja2 renders, called as transformers calls it.

    python tests/oracle/chat_golden.py --write     # makes the files; without --write they are compared

cases.json has every tests/golden/chat/*.jinja with every conversation. A case has "text", or "error" where the template
calls raise_exception, or "fails" where jinja2 raises an error of its own, whose wording is not compared. "spans" are the
parts inside {% generation %} in bytes of UTF-8. strftime_now prints 2024-07-26, so that the files are the same every day.
"""

import datetime
import json
import os
import sys

import oracle

jinja2, transformers = oracle.need("jinja2", "transformers")
from transformers.utils import chat_template_utils  # noqa: E402

ABOUT = f"made by tests/oracle/chat_golden.py with transformers {transformers.__version__}, jinja2 {jinja2.__version__}"
FOLDER = os.path.join(oracle.ROOT, "tests", "golden", "chat")
sys.path.insert(0, FOLDER)
from expressions import EXPRESSIONS, REFUSED, VARIABLES  # noqa: E402


class Fixed(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26, tzinfo=tz)


chat_template_utils.datetime = Fixed

WEATHER = {"type": "function", "function": {
    "name": "get_weather", "description": "Current weather of a place, in °C or \"F\".",
    "parameters": {"type": "object", "properties": {
        "place": {"type": "string", "description": "A town & its <country>"}, "days": {"type": "integer"}},
        "required": ["place"]}}}
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time.",
                                          "parameters": {"type": "object", "properties": {}}}}


def turns(*pairs):
    names = {"s": "system", "u": "user", "a": "assistant", "t": "tool", "d": "developer", "n": "narrator"}
    return [{"role": names[role], "content": content} for role, content in pairs]


def call(name, arguments, number):
    return {"type": "function", "id": f"call{number:05d}", "function": {"name": name, "arguments": arguments}}


CONVERSATIONS = {  # name: messages, tools, generate, further variables
    "plain": (turns(("u", "Hello?")), None, True, {}),
    "answer": (turns(("u", "Hello?"), ("a", "Hi.")), None, False, {}),
    "system": (turns(("s", "Be brief."), ("u", "Hello?")), None, True, {}),
    "turns": (turns(("s", "Be brief."), ("u", "One?"), ("a", "1"), ("u", "Two?"), ("a", "2")), None, False, {}),
    "question": (turns(("u", "One?"), ("a", "1"), ("u", "Two?"), ("a", "2"), ("u", "Three?")), None, True, {}),
    "spaces": (turns(("s", " \n Be brief.\t"), ("u", "\n  Hello? \n\n"), ("a", "\n\n Hi. \n")), None, False, {}),
    "unicode": (turns(("u", "\u00a0\u3000Größe 日本語 e\u0301 👩‍👩‍👧 \u200b\u0085"), ("a", "\u001c\u2003«да»\u2028\ufeff")), None, False, {}),
    "marks": (turns(("u", "<|im_end|>{{ x }}{% if %} '\"\\ &<b> [/INST]\r\n"), ("a", "</s>{# no #}%}")), None, False, {}),
    "empty": (turns(("s", ""), ("u", ""), ("a", "")), None, False, {}),
    "two users": (turns(("u", "One?"), ("u", "Two?")), None, True, {}),
    "answer first": (turns(("a", "Hi."), ("u", "Hello?")), None, True, {}),
    "late system": (turns(("u", "One?"), ("a", "1"), ("s", "Be brief."), ("u", "Two?")), None, True, {}),
    "developer": (turns(("d", "Be brief."), ("u", "Hello?"), ("n", "He waits.")), None, True, {}),
    "no content": ([{"role": "user"}, {"role": "assistant", "content": None}], None, False, {}),
    "parts": ([{"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
               {"role": "user", "content": [{"type": "text", "text": " One? "}, {"type": "text", "text": "Two?"}]},
               {"role": "assistant", "content": [{"type": "text", "text": "1"}]}], None, False, {}),
    "thinking": (turns(("u", "One?"), ("a", "<think>\nIt is 1.\n</think>\n\n1"), ("u", "Two?"),
                       ("a", "<think>\nIt is\n2.\n\n</think>\n\n\n2")), None, False, {}),
    "reasoning": ([{"role": "user", "content": "One?"},
                   {"role": "assistant", "content": "1", "reasoning_content": "It is 1.\n"}], None, False, {}),
    "no thinking": (turns(("s", "Count. /no_think"), ("u", "One?"), ("a", "1"), ("u", "Two?")), None, True, {"enable_thinking": False}),
    "tools": (turns(("s", "Be brief."), ("u", "Rain?")), [WEATHER, CLOCK], True, {}),
    "tools only": (turns(("u", "Rain?")), [WEATHER], True, {}),
    "calls": ([{"role": "user", "content": "Rain?"},
               {"role": "assistant", "content": "", "tool_calls": [call("get_weather", {"place": "Zürich", "days": 2}, 1)]},
               {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"rain\": true}"},
               {"role": "assistant", "content": "Yes."}], [WEATHER], False, {}),
    "two calls": ([{"role": "user", "content": "Rain? Time?"},
                   {"role": "assistant", "content": None, "tool_calls": [
                       call("get_weather", {"place": "A \"b\""}, 1), call("clock", {}, 2)]},
                   {"role": "tool", "tool_call_id": "call00001", "content": "dry"},
                   {"role": "tool", "tool_call_id": "call00002", "content": "12:00"}], None, True, {}),
    "documents": (turns(("u", "Who?")), None, True, {
        "documents": [{"title": "A", "text": "First."}, {"title": "B", "text": "Second."}], "controls": {"citations": True}}),
    "thirteen": ([{"role": "user" if i % 2 == 0 else "assistant", "content": str(i)} for i in range(13)], None, True, {}),
}

TOKENS = {  # bos_token and eos_token of the models; others are None
    "llama2": ("<s>", "</s>"), "llama3": ("<|begin_of_text|>", "<|eot_id|>"), "llama3.1": ("<|begin_of_text|>", "<|eot_id|>"),
    "llama3.2": ("<|begin_of_text|>", "<|eot_id|>"), "qwen2": (None, "<|im_end|>"), "qwen2.5": (None, "<|im_end|>"),
    "qwen3": (None, "<|im_end|>"), "mistral-v1": ("<s>", "</s>"), "mistral-v3": ("<s>", "</s>"), "mistral-v7": ("<s>", "</s>"),
    "mixtral": ("<s>", "</s>"), "phi3": ("<s>", "<|endoftext|>"), "phi4": ("<|endoftext|>", "<|im_end|>"),
    "phi4-mini": ("<|endoftext|>", "<|endoftext|>"), "gemma2": ("<bos>", "<eos>"), "gemma3": ("<bos>", "<eos>"),
    "zephyr": ("<s>", "</s>"), "tinyllama": ("<s>", "</s>"), "tulu3": ("<|begin_of_text|>", "<|end_of_text|>"),
    "olmo2": ("<|endoftext|>", "<|endoftext|>"), "granite3": ("<|end_of_text|>", "<|end_of_text|>"),
    "deepseek-r1": ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), "chatml": (None, "<|im_end|>"),
    "chatml-default": (None, "<|im_end|>"), "chatml-eos": ("<s>", "</s>"), "vicuna": ("<s>", "</s>"), "alpaca": ("<s>", "</s>"),
    "command-r": ("<BOS_TOKEN>", "<|END_OF_TURN_TOKEN|>"), "smollm2": ("<|im_start|>", "<|im_end|>"),
    "smollm3": (None, "<|im_end|>"),
}


def in_bytes(text, spans):
    return [[len(text[:begin].encode()), len(text[:end].encode())] for begin, end in spans]


def render(template, messages, tools, generate, variables):
    """The result's members: text and spans, or error, or fails."""
    tracked = "generation %}" in template or "generation -%}" in template
    try:
        texts, spans = chat_template_utils.render_jinja_template(
            conversations=[messages], tools=tools, chat_template=template, add_generation_prompt=generate,
            return_assistant_tokens_mask=tracked, **variables)
    except jinja2.TemplateError as e:
        if type(e) is jinja2.TemplateError:
            return {"error": e.message}
        return {"fails": f"{type(e).__name__}: {e}"}
    except Exception as e:  # TypeError and others of Python: the template cannot be rendered
        return {"fails": f"{type(e).__name__}: {e}"}
    return {"text": texts[0], **({"spans": in_bytes(texts[0], spans[0])} if tracked else {})}


def cases():
    made = {"about": ABOUT, "conversations": {}, "templates": {}, "cases": []}
    for name, (messages, tools, generate, variables) in CONVERSATIONS.items():
        made["conversations"][name] = {"messages": messages, "add_generation_prompt": generate,
                                       **({"tools": tools} if tools else {}), **({"variables": variables} if variables else {})}
    for name, (bos, eos) in TOKENS.items():
        tokens = {"eos_token": eos, **({"bos_token": bos} if bos else {})}
        made["templates"][name] = tokens
        with open(os.path.join(FOLDER, name + ".jinja"), encoding="utf8") as file:
            template = file.read()
        for conversation, (messages, tools, generate, variables) in CONVERSATIONS.items():
            variables = {**tokens, **variables}
            made["cases"].append({"template": name, "conversation": conversation,
                                  **render(template, messages, tools, generate, variables)})
    return made


def expressions():
    """Each small template sees VARIABLES and one short conversation."""
    made = []
    for template in EXPRESSIONS + REFUSED:
        messages = CONVERSATIONS["turns"][0]
        made.append({"template": template, **render(template, messages, None, False, VARIABLES),
                     **({"refused": True} if template in REFUSED else {})})
    return {"about": ABOUT, "variables": VARIABLES, "messages": CONVERSATIONS["turns"][0], "cases": made}


def rows(made):
    """JSON with one case a line, so that a change shows as the lines that changed."""
    lines = [f" {json.dumps(k)}: {json.dumps(v, ensure_ascii=False)}" for k, v in made.items() if k != "cases"]
    body = ",\n".join("  " + json.dumps(c, ensure_ascii=False) for c in made["cases"])
    return "{\n" + ",\n".join(lines) + ',\n "cases": [\n' + body + "\n ]\n}\n"


def compared(made):
    """The cases without the wording of errors, which depends on the versions of the packages."""
    return [{k: v if k != "fails" else True for k, v in case.items()} for case in made["cases"]]


def main():
    bad = 0
    for name, made in (("cases.json", cases()), ("expressions.json", expressions())):
        path = os.path.join(FOLDER, name)
        if "--write" in sys.argv:
            with open(path, "w", encoding="utf8") as file:
                file.write(rows(made))
            print(f"{name}: {len(made['cases'])} cases, {os.path.getsize(path)} bytes")
            continue
        with open(path, encoding="utf8") as file:
            differ = [c for c, d in zip(compared(made), compared(json.load(file)), strict=True) if c != d]
        print(f"{name}: {len(made['cases'])} cases, {len(differ)} differ", *differ[:3], sep="\n  ")
        bad += len(differ)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
