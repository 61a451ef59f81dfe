#!/usr/bin/env python3
"""Makes tests/golden/bases: a small random model of each family whose block differs from Llama's, and of each rope
scaling, with a PEFT adapter and the numbers that PyTorch and PEFT give for them in float32 on one CPU thread. Files
and contents are those of tests/golden/cases. The weights are BF16 in the files and computed with in float32.

Each case is computed in float64 as well, and the differences are printed and checked: only a well conditioned case
can show an error. Every switch matters: a run with it off must give other logits (`off` of a case).

transformers keeps the frequencies of the longest row that it has seen with dynamic scaling, so they are made new
before each row here: a row's numbers then depend on nothing but the row.

defaults.json holds what transformers' configuration classes make of a file with few keys, and of the style before
version 5. rope.json holds the frequencies and the factor of cos and sin that transformers' functions give for the kinds of
scaling, with rows of different lengths.

Each model is also in bf16.gguf, with the names, keys and tensors that llama.cpp's converters write; the names are
those of the gguf package. llama.cpp has no key for Gemma's query_pre_attn_scalar, so these two files hold the models
with the usual one, the head dimension. There is no such file for dynamic scaling.

usage: make_bases.py [CASE...]     needs torch, gguf, transformers, peft, safetensors; replaces existing cases
"""

import copy
import json
import math
import os
import random
import shutil
import sys

import gguf
import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, get_scheduler
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from make_cases import ALL, HYPER, ROWS, STEPS

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "bases")
VOCAB, LOGITS = 47, 4
FUSED = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
BASE = {
    "vocab_size": VOCAB, "hidden_size": 24, "intermediate_size": 28, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rms_norm_eps": 1e-5,
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 300.0, "original_max_position_embeddings": 16}
# `norm`: the middle of the norms' weights in the file; Gemma's computes with 1 + weight.
CASES = {
    "gemma2": {
        "type": "gemma2", "norm": 0.0,
        "config": {"head_dim": 8, "query_pre_attn_scalar": 11, "sliding_window": 5, "attn_logit_softcapping": 1.5,
                   "final_logit_softcapping": 4.0, "tie_word_embeddings": True},
        "off": [{"attn_logit_softcapping": None}, {"final_logit_softcapping": None}, {"sliding_window": 64},
                {"query_pre_attn_scalar": 8}, {"hidden_activation": "silu"}],
    },
    "gemma3": {
        "type": "gemma3_text", "norm": 0.0,
        "config": {"head_dim": 8, "query_pre_attn_scalar": 13, "sliding_window": 6, "tie_word_embeddings": True,
                   "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
                   "rope_parameters": {
                       "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 3000.0},
                       "sliding_attention": {"rope_type": "default", "rope_theta": 40.0}}},
        "off": [{"sliding_window": 64}, {"query_pre_attn_scalar": 8}, {"rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 3.0, "rope_theta": 3000.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 3000.0}}}],
    },
    "phi3": {
        "type": "phi3", "modules": FUSED,
        "config": {"tie_word_embeddings": False, "hidden_size": 32, "original_max_position_embeddings": 16,
                   "rope_parameters": {**LONGROPE, "short_factor": [1.0, 1.3, 2.0, 2.5],
                                       "long_factor": [1.5, 4.0, 7.0, 9.0]}},
        "off": [{"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}],
    },
    "phi4-mini": {
        "type": "phi3", "modules": FUSED,
        "config": {"tie_word_embeddings": True, "hidden_size": 32, "original_max_position_embeddings": 16,
                   "sliding_window": 7,
                   "rope_parameters": {**LONGROPE, "partial_rotary_factor": 0.75, "short_factor": [1.0, 1.1, 1.2],
                                       "long_factor": [1.0, 3.5, 5.0]}},
        "off": [{"sliding_window": None}],
    },
    "granite": {
        "type": "granite",
        "config": {"tie_word_embeddings": True, "embedding_multiplier": 6.0, "logits_scaling": 3.0,
                   "residual_multiplier": 0.3, "attention_multiplier": 0.7, "head_dim": 6},
        "off": [{"embedding_multiplier": 1.0}, {"logits_scaling": 1.0}, {"residual_multiplier": 1.0},
                {"attention_multiplier": 6**-0.5}],
    },
    "olmo2": {
        "type": "olmo2",
        "config": {"tie_word_embeddings": False},
        "off": [],
    },
    "smollm3": {
        "type": "smollm3",
        "config": {"tie_word_embeddings": True, "num_hidden_layers": 4, "intermediate_size": 20},
        "off": [{"no_rope_layers": [1, 1, 1, 1]}],
    },
    "llama-yarn": {
        "type": "llama",
        "config": {"tie_word_embeddings": True, "head_dim": 12, "rope_parameters": {
            "rope_type": "yarn", "rope_theta": 100.0, "factor": 4.0, "original_max_position_embeddings": 16,
            "beta_fast": 4.0, "beta_slow": 1.0}},
        "off": [{"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}],
    },
    "llama-longrope": {
        "type": "llama",
        "config": {"tie_word_embeddings": True, "rope_parameters": {
            **LONGROPE, "factor": 5.0, "short_factor": [1.0, 1.5, 2.5], "long_factor": [2.0, 5.0, 11.0]}},
        "off": [{"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}],
    },
    "llama-dynamic": {
        "type": "llama",
        "config": {"tie_word_embeddings": True, "max_position_embeddings": 16, "rope_parameters": {
            "rope_type": "dynamic", "rope_theta": 200.0, "factor": 3.0}},
        "off": [{"rope_parameters": {"rope_type": "default", "rope_theta": 200.0}}],
    },
}
ROPES = {
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.5},
    "partial": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 1.0, "partial_rotary_factor": 0.75},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 1e6, "factor": 4.0, "original_max_position_embeddings": 32768},
    "yarn betas": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 16.0, "original_max_position_embeddings": 4096,
                   "beta_fast": 24.0, "beta_slow": 2.0, "truncate": False, "attention_factor": 0.75},
    "yarn mscale": {"rope_type": "yarn", "rope_theta": 1e4, "factor": 40.0, "original_max_position_embeddings": 4096,
                    "mscale": 0.707, "mscale_all_dim": 1.3, "partial_rotary_factor": 0.5},
    "longrope": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
                 "short_factor": [1.0 + i / 7 for i in range(16)], "long_factor": [1.0 + 3.7 * i for i in range(16)]},
    "longrope factors": {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
                         "factor": 9.0, "attention_factor": 1.25,
                         "short_factor": [1.0 + i / 7 for i in range(16)],
                         "long_factor": [1.0 + 3.7 * i for i in range(16)]},
}


def config_of(case):
    return AutoConfig.for_model(case["type"], **copy.deepcopy({**BASE, **case["config"]}))


def make_base(case, folder):
    model = AutoModelForCausalLM.from_config(config_of(case), dtype=torch.float32)
    middle = case.get("norm", 1.0)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "norm" in name:
                p.uniform_(middle - 0.5, middle + 0.5)
            else:
                p.normal_(0.0, 0.6 if "embed" in name else 1.2 / math.sqrt(p.shape[-1]))
    model.bfloat16().save_pretrained(folder)
    if os.path.exists(os.path.join(folder, "generation_config.json")):
        os.remove(os.path.join(folder, "generation_config.json"))


def add_adapter(case, folder):
    lora = LoraConfig(task_type="CAUSAL_LM", r=3, lora_alpha=5, target_modules=case.get("modules", ALL))
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), lora)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(0.0, 0.2)
    model.peft_config["default"].base_model_name_or_path = f"tests/golden/bases/{os.path.basename(folder)}"
    model.save_pretrained(os.path.join(folder, "adapter"))
    readme = os.path.join(folder, "adapter", "README.md")
    if os.path.exists(readme):
        os.remove(readme)


def load(folder, dtype, config=None):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, config=config, attn_implementation="eager")
    model = PeftModel.from_pretrained(model, os.path.join(folder, "adapter"), is_trainable=True)
    return model.to(dtype)


def make_rows(folder):
    rows = []
    for count in (24, 11, 16, 30, 7, 19, 27, 17):
        ids = [random.randrange(3, VOCAB) for _ in range(count)]
        start = random.randrange(1, count // 2)
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    rows[5]["labels"][-3] = -100  # a hole
    with open(os.path.join(folder, "rows.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def logits_of(model, row):
    inner = model.base_model.model.model
    if getattr(inner.rotary_emb, "rope_type", "") == "dynamic":
        inner.rotary_emb = type(inner.rotary_emb)(inner.config)
    return model(torch.tensor([row["input_ids"]]), use_cache=False).logits[0]


def losses_of(model, rows):
    total, count = 0.0, 0
    for row in rows:
        labels = torch.tensor(row["labels"])[1:]
        total = total + torch.nn.functional.cross_entropy(
            logits_of(model, row)[:-1], labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count, count


def train(model, trained, rows, expect):
    optimizer = torch.optim.AdamW([p for _, p in trained], lr=HYPER["lr"], betas=(0.9, 0.999),
                                  eps=1e-8, weight_decay=0.01)
    schedule = get_scheduler("linear", optimizer, HYPER["warmup"], STEPS)
    expect["losses"], expect["grad_norms"] = [], []
    for step in range(STEPS):
        optimizer.zero_grad()
        loss, _ = losses_of(model, [rows[(2 * step + i) % ROWS] for i in range(2)])
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in trained], HYPER["clip"])
        optimizer.step()
        schedule.step()
        expect["losses"].append(loss.item())
        expect["grad_norms"].append(norm.item())


def compute(name, folder, rows, dtype):
    model, tensors = load(folder, dtype), {}
    trained = [(n.replace(".default", ""), p) for n, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for i, row in enumerate(rows[:LOGITS]):
            tensors[f"logits.{i}"] = logits_of(model, row).clone()
        loss, count = losses_of(model, rows)
    expect = {"case": name, "hyper": HYPER, "logits": LOGITS, "eval_loss": loss.item(), "eval_tokens": count}
    loss, _ = losses_of(model, rows[:2])
    loss.backward()
    expect["first_batch_loss"] = loss.item()
    for n, p in trained:
        tensors[f"grad.{n}"] = p.grad.clone()
    train(model, trained, rows, expect)
    for n, p in trained:
        tensors[f"after.{n}"] = p.detach().clone()
    return expect, tensors


def distance(x, y, largest=False):
    x, y = x.double(), y.double()
    return float((x - y).abs().max() / y.abs().max() if largest else (x - y).norm() / y.norm())


def check_conditioning(name, single, double):
    worst = {part: max(distance(single[n], double[n], part == "logits") for n in single if n.startswith(part + "."))
             for part in ("logits", "grad", "after")}
    print(f"  float32 against float64: {worst}")
    assert worst["logits"] < 4e-6 and worst["grad"] < 8e-6 and worst["after"] < 4e-5, name


def check_switches(case, folder, rows, tensors):
    for change in case["off"]:
        values = dict(change)
        config = AutoConfig.from_pretrained(folder)
        for key, value in values.items():
            setattr(config, key, value)
        with torch.no_grad():
            other = load(folder, torch.float32, config)
            moved = max(distance(logits_of(other, rows[i]), tensors[f"logits.{i}"], True) for i in range(LOGITS))
        print(f"  {list(values)[0]}: {moved:.2g}")
        assert moved > 1e-3, change


def make(name, case):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    torch.manual_seed(sum(map(ord, name)))
    random.seed(name)
    make_base(case, folder)
    add_adapter(case, folder)
    rows = make_rows(folder)
    expect, tensors = compute(name, folder, rows, torch.float32)
    print(f"{name}: loss {expect['eval_loss']:.4f}, after training {expect['losses'][-1]:.4f}")
    check_conditioning(name, tensors, compute(name, folder, rows, torch.float64)[1])
    check_switches(case, folder, rows, tensors)
    save_file(tensors, os.path.join(folder, "expect.safetensors"))
    with open(os.path.join(folder, "expect.json"), "w", encoding="utf-8") as file:
        json.dump(expect, file, indent=1)
        file.write("\n")


def make_ropes():
    out = {}
    for name, rope in ROPES.items():
        config = LlamaConfig(hidden_size=128, num_attention_heads=4, head_dim=32, max_position_embeddings=8192)
        config.rope_parameters = dict(rope)
        out[name] = {"rope_parameters": rope, "rows": []}
        for positions in (5, 4096, 4097, 9000):
            length = torch.tensor(positions) if positions > 8192 else positions
            freq, factor = ROPE_INIT_FUNCTIONS[rope["rope_type"]](config, "cpu", seq_len=length)
            out[name]["rows"].append({"positions": positions, "factor": float(factor), "frequencies": freq.tolist()})
    with open(os.path.join(HERE, "rope.json"), "w", encoding="utf-8") as file:
        json.dump(out, file)
        file.write("\n")


def gguf_factors(w, c, rope):
    """The keys of the rotation; returns the tensors of factors."""
    kind = rope["rope_type"]
    w.add_rope_freq_base(rope["rope_theta"])
    if kind == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(rope["factor"])
    if kind in ("yarn", "longrope"):
        w.add_rope_scaling_orig_ctx_len(rope["original_max_position_embeddings"])
        if c.model_type != "phi3":
            w.add_rope_scaling_type(gguf.RopeScalingType(kind))
    if kind == "yarn":
        w.add_rope_scaling_factor(rope["factor"])
        w.add_rope_scaling_yarn_beta_fast(rope["beta_fast"])
        w.add_rope_scaling_yarn_beta_slow(rope["beta_slow"])
    if kind != "longrope":
        return {}
    original = rope["original_max_position_embeddings"]
    scale = rope.get("factor") or c.max_position_embeddings / original
    w.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(scale) / math.log(original)))
    return {f"rope_factors_{n}.weight": np.array(rope[f"{n}_factor"], dtype=np.float32) for n in ("long", "short")}


def gguf_switches(w, c):
    if c.model_type.startswith("gemma"):
        w.add_key_length(c.head_dim)
        w.add_value_length(c.head_dim)
        w.add_sliding_window(c.sliding_window)
    if c.model_type == "gemma2":
        w.add_attn_logit_softcapping(c.attn_logit_softcapping)
        w.add_final_logit_softcapping(c.final_logit_softcapping)
    if c.model_type == "gemma3_text":
        w.add_sliding_window_pattern(2)
        w.add_float32("gemma3.rope.freq_base_swa", c.rope_parameters["sliding_attention"]["rope_theta"])
    if c.model_type == "phi3":
        w.add_sliding_window(c.sliding_window or 0)
    if c.model_type == "granite":
        w.add_attention_scale(c.attention_multiplier)
        w.add_embedding_scale(c.embedding_multiplier)
        w.add_residual_scale(c.residual_multiplier)
        w.add_logit_scale(c.logits_scaling)


def gguf_rows(name, x, c):
    """Rows of q and k in the order of the families that llama.cpp rotates in neighbouring pairs."""
    heads = {"q_proj": c.num_attention_heads, "k_proj": c.num_key_value_heads}.get(name.split(".")[-2])
    if heads is None or c.model_type not in ("llama", "granite", "smollm3"):
        return x
    return x.reshape(heads, 2, x.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(x.shape)


def make_gguf(name):
    folder = os.path.join(HERE, name)
    c = AutoConfig.from_pretrained(folder)
    rope = c.rope_parameters.get("full_attention", c.rope_parameters)
    if rope["rope_type"] == "dynamic":
        return
    arch = {"gemma3_text": "gemma3"}.get(c.model_type, c.model_type)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    w = gguf.GGUFWriter(os.path.join(folder, "bf16.gguf"), arch)
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_dimension_count(int(head_dim * rope.get("partial_rotary_factor", 1.0)))
    if arch == "llama":
        w.add_key_length(head_dim)
        w.add_value_length(head_dim)
    w.add_tokenizer_model("no_vocab")
    gguf_switches(w, c)
    for key, value in gguf_factors(w, c, rope).items():
        w.add_tensor(key, value)
    names = gguf.get_tensor_name_map(next(a for a, n in gguf.MODEL_ARCH_NAMES.items() if n == arch), c.num_hidden_layers)
    for key, value in load_file(os.path.join(folder, "model.safetensors")).items():
        x = value.float().numpy()
        if "norm" in key and arch.startswith("gemma"):
            x = x + np.float32(1)
        x = np.ascontiguousarray(gguf_rows(key, x, c))
        kind = gguf.GGMLQuantizationType.F32 if x.ndim == 1 else gguf.GGMLQuantizationType.BF16
        w.add_tensor(names.get_name(key, (".weight",)), gguf.quants.quantize(x, kind), raw_dtype=kind)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


# Files with few keys; those of Gemma 3 are as in the published 1B and 4B models.
SPARSE = {
    "gemma2": {"model_type": "gemma2"},
    "gemma3_text": {"model_type": "gemma3_text", "num_hidden_layers": 7, "hidden_size": 1152, "sliding_window": 512,
                    "sliding_window_pattern": 3, "rope_theta": 2e6, "rope_local_base_freq": 20000.0,
                    "num_key_value_heads": 1, "rope_scaling": {"factor": 8.0, "rope_type": "linear"}},
    "gemma3": {"model_type": "gemma3", "text_config": {
        "model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10240, "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024}},
    "phi3": {"model_type": "phi3"},
    "phi3 long": {"model_type": "phi3", "max_position_embeddings": 131072, "original_max_position_embeddings": 2048,
                "rope_scaling": {"type": "longrope", "short_factor": [1.1] * 48, "long_factor": [2.5] * 48}},
    "phi3 partial": {"model_type": "phi3", "partial_rotary_factor": 0.75, "num_attention_heads": 24,
                     "num_key_value_heads": 8, "sliding_window": 262144, "tie_word_embeddings": True},
    "granite": {"model_type": "granite"},
    "olmo2": {"model_type": "olmo2"},
    "smollm3": {"model_type": "smollm3"},
    "smollm3 window": {"model_type": "smollm3", "num_hidden_layers": 6, "no_rope_layer_interval": 3,
                       "use_sliding_window": True, "sliding_window": 100},
    "smollm3 list": {"model_type": "smollm3", "num_hidden_layers": 4, "no_rope_layers": [0, 1, 1, 0, 1]},
}


def scaling_of(c):
    """The factor of the scores, by the family's own code."""
    if hasattr(c, "query_pre_attn_scalar"):
        return c.query_pre_attn_scalar ** -0.5
    if hasattr(c, "attention_multiplier"):
        return c.attention_multiplier
    return (getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads) ** -0.5


def make_defaults():
    out = {}
    for name, given in SPARSE.items():
        values = copy.deepcopy(given)
        whole = AutoConfig.for_model(values.pop("model_type"), **values)
        c = getattr(whole, "text_config", whole)
        types = getattr(c, "layer_types", None) or ["full_attention"] * c.num_hidden_layers
        if c.model_type == "phi3":
            types = ["sliding_attention" if c.sliding_window else "full_attention"] * c.num_hidden_layers
        rope = c.rope_parameters
        full, window = rope.get("full_attention", rope), rope.get("sliding_attention", rope)
        rotated = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        out[name] = {"config": given, "expect": {
            "layers": c.num_hidden_layers, "d_model": c.hidden_size, "d_ffn": c.intermediate_size,
            "heads": c.num_attention_heads, "kv_heads": c.num_key_value_heads, "head_dim": rotated,
            "rotated": int(rotated * full.get("partial_rotary_factor", 1.0)),
            "vocab": c.vocab_size, "max_positions": c.max_position_embeddings, "rms_eps": c.rms_norm_eps,
            "tied": bool(whole.tie_word_embeddings), "kind": full["rope_type"], "theta": full["rope_theta"],
            "factor": full.get("factor") or 0, "window_kind": window["rope_type"],
            "window_theta": window["rope_theta"],
            "original": full["original_max_position_embeddings"] if full["rope_type"] == "longrope" else 0,
            "windows": [c.sliding_window if t == "sliding_attention" else 0 for t in types],
            "unrotated": [not r for r in getattr(c, "no_rope_layers", [1] * c.num_hidden_layers)][:len(types)],
            "attention_scale": scaling_of(c),
            "attention_cap": getattr(c, "attn_logit_softcapping", None) or 0,
            "logit_cap": getattr(c, "final_logit_softcapping", None) or 0,
            "activation": getattr(c, "hidden_activation", getattr(c, "hidden_act", None)),
        }}
    with open(os.path.join(HERE, "defaults.json"), "w", encoding="utf-8") as file:
        json.dump(out, file)
        file.write("\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or CASES:
        if case_name in CASES:
            make(case_name, CASES[case_name])
    for case_name in CASES:
        make_gguf(case_name)
    make_ropes()
    make_defaults()
