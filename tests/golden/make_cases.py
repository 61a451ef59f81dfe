#!/usr/bin/env python3
"""Makes tests/golden/cases: small random models of the supported families with the numbers that PyTorch and
PEFT give for them, in float32 on one CPU thread. The kinds are those of the shared cases, with other sizes:

  llama-wide-heads   three heads of 24 over one KV head, biases on all of attention and the MLP, rank above d_model
  mistral-narrow     a window of 5 positions, heads as many as KV heads, only o, gate and down adapted, alpha 0.5
  qwen2-pattern      biases, an untied head, rank and alpha patterns by whole names, rsLoRA
  qwen3-carry        norms on heads, a carry in some modules and adapters in others
  llama3-small       llama3 rope, B R A and a carry, only R trains, s = alpha / r = 1
  llama-linear       linear rope scaling, rsLoRA in the metadata of a state: rank 3, alpha 5

usage: make_cases.py [CASE...]     needs torch, transformers, peft, safetensors; replaces existing cases
"""

import json
import math
import os
import random
import shutil
import sys

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, get_scheduler

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "cases")
VOCAB, ROWS, STEPS, LOGITS = 83, 8, 20, 4
ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
HYPER = {
    "lr": 5e-3, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.01, "clip": 1.0,
    "schedule": "linear", "warmup": 3, "steps": STEPS, "batch": 2,
}
BASE = {
    "vocab_size": VOCAB, "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "rms_norm_eps": 1e-6,
}
CASES = {
    "llama-wide-heads": {
        "type": "llama",
        "config": {"num_hidden_layers": 1, "hidden_size": 36, "num_attention_heads": 3, "num_key_value_heads": 1, "head_dim": 24,
                   "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        "lora": {"r": 40, "lora_alpha": 24, "target_modules": ALL},
    },
    "mistral-narrow": {
        "type": "mistral",
        "config": {"sliding_window": 5, "num_key_value_heads": 4, "head_dim": 8,
                   "tie_word_embeddings": False},
        "lora": {"r": 3, "lora_alpha": 0.5, "target_modules": ["o_proj", "gate_proj", "down_proj"]},
    },
    "qwen2-pattern": {
        "type": "qwen2",
        "config": {"tie_word_embeddings": False},
        "lora": {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": ALL,
                 "rank_pattern": {"layers.1.mlp.up_proj": 7, "v_proj": 1},
                 "alpha_pattern": {"layers.0.self_attn.k_proj": 2}},
    },
    "qwen3-carry": {
        "type": "qwen3",
        "config": {"head_dim": 20, "num_key_value_heads": 1, "tie_word_embeddings": True},
        "state": {"rank": 5, "alpha": 10, "lora": ["q_proj", "v_proj", "up_proj"],
                  "carry": ["q_proj", "k_proj", "down_proj"], "carry_rank": 9},
    },
    "llama3-small": {
        "type": "llama",
        "config": {"tie_word_embeddings": True, "rope_parameters": {
            "rope_type": "llama3", "rope_theta": 1000.0, "factor": 4.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 16}},
        "state": {"rank": 7, "alpha": 7, "lora": ALL, "small": True, "carry": ["o_proj", "up_proj"],
                  "carry_rank": 2},
    },
    "llama-linear": {
        "type": "llama",
        "config": {"tie_word_embeddings": False, "rope_parameters": {
            "rope_type": "linear", "rope_theta": 500.0, "factor": 3.0}},
        "state": {"rank": 3, "alpha": 5, "rslora": True, "lora": ["k_proj", "down_proj"], "carry": []},
    },
}


class Adapted(torch.nn.Module):
    """W0 x + b + carry_B carry_A x + s B [R] A x: what a state means, written down plainly."""

    def __init__(self, base, state, has_lora, has_carry):
        super().__init__()
        self.base, self.scale = base, 0.0
        out, inner, rank = base.out_features, base.in_features, state["rank"]
        if has_lora:
            self.scale = state["alpha"] / (math.sqrt(rank) if state.get("rslora") else rank)
            small = state.get("small", False)
            self.lora_A = torch.nn.Parameter(torch.randn(rank, inner) * 0.2, not small)
            self.lora_B = torch.nn.Parameter(torch.randn(out, rank) * 0.2, not small)
            if small:
                self.lora_R = torch.nn.Parameter(torch.randn(rank, rank) * 0.3)
        if has_carry:
            self.carry_A = torch.nn.Parameter(torch.randn(state["carry_rank"], inner) * 0.1, False)
            self.carry_B = torch.nn.Parameter(torch.randn(out, state["carry_rank"]) * 0.1, False)

    def forward(self, x):
        y = self.base(x)
        if hasattr(self, "carry_A"):
            y = y + x @ self.carry_A.T @ self.carry_B.T
        if hasattr(self, "lora_A"):
            h = x @ self.lora_A.T
            if hasattr(self, "lora_R"):
                h = h @ self.lora_R.T
            y = y + self.scale * (h @ self.lora_B.T)
        return y


def make_base(case, folder):
    extra = {k: v for k, v in case["config"].items() if k != "rope_parameters"}
    config = AutoConfig.for_model(case["type"], **{**BASE, **extra})
    if "rope_parameters" in case["config"]:
        config.rope_parameters = case["config"]["rope_parameters"]
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("bias"):
                p.normal_(0.0, 0.3)
            elif "norm" in name:
                p.uniform_(0.5, 1.5)
            else:
                p.normal_(0.0, 0.9 if "embed" in name else 1.2 / math.sqrt(p.shape[-1]))
    model.save_pretrained(folder)
    for name in ("generation_config.json",):
        if os.path.exists(os.path.join(folder, name)):
            os.remove(os.path.join(folder, name))
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def with_lora(case, model, folder):
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **case["lora"]))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "lora_" in name:
                p.normal_(0.0, 0.2)
    base = os.path.join("tests", "golden", "cases", os.path.basename(folder))
    model.peft_config["default"].base_model_name_or_path = base  # not where it was made
    model.save_pretrained(os.path.join(folder, "adapter"))
    readme = os.path.join(folder, "adapter", "README.md")
    if os.path.exists(readme):
        os.remove(readme)
    return model, lambda name: name.replace(".default", "")


def with_state(case, model, folder):
    state = case["state"]
    for layer in model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name in ALL:
                lora, carry = name in state["lora"], name in state["carry"]
                if hasattr(part, name) and (lora or carry):
                    setattr(part, name, Adapted(getattr(part, name), state, lora, carry))
    for name, p in model.named_parameters():
        if "lora_" not in name and "carry_" not in name:
            p.requires_grad_(False)
    rename = lambda name: f"base_model.model.{name}.weight"
    tensors = {rename(n): p.detach().clone() for n, p in model.named_parameters()
               if "lora_" in n or "carry_" in n}
    words = {"fedlora.method": "fed-sb" if state.get("small") else "flora",
             "fedlora.rank": str(state["rank"]), "fedlora.alpha": str(state["alpha"])}
    if state.get("rslora"):
        words["fedlora.rslora"] = "true"
    save_file(tensors, os.path.join(folder, "state.safetensors"), words)
    return model, rename


def make_rows(folder):
    rows = []
    for i in range(ROWS):
        count = random.randint(6, 30)
        ids = [random.randrange(3, VOCAB) for _ in range(count)]
        start = random.randrange(1, count // 2)
        rows.append({"input_ids": ids, "labels": [-100] * start + ids[start:]})
    rows[5]["labels"][-3] = -100  # a hole
    with open(os.path.join(folder, "rows.jsonl"), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return rows


def losses_of(model, rows):
    total, count = 0.0, 0
    for row in rows:
        logits = model(torch.tensor([row["input_ids"]])).logits[0]
        labels = torch.tensor(row["labels"])[1:]
        total = total + torch.nn.functional.cross_entropy(
            logits[:-1], labels, ignore_index=-100, reduction="sum")
        count += int((labels != -100).sum())
    return total / count, count


def train(model, trained, rows, expect):
    optimizer = torch.optim.AdamW([p for _, p in trained], lr=HYPER["lr"], betas=(0.9, 0.999),
                                  eps=1e-8, weight_decay=0.01)
    schedule = get_scheduler("linear", optimizer, HYPER["warmup"], STEPS)
    expect["losses"], expect["grad_norms"] = [], []
    for step in range(STEPS):
        batch = [rows[(2 * step + i) % ROWS] for i in range(2)]
        optimizer.zero_grad()
        loss, _ = losses_of(model, batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_([p for _, p in trained], HYPER["clip"])
        optimizer.step()
        schedule.step()
        expect["losses"].append(loss.item())
        expect["grad_norms"].append(norm.item())


def make(name, case):
    folder = os.path.join(HERE, name)
    shutil.rmtree(folder, ignore_errors=True)
    os.makedirs(folder)
    torch.manual_seed(sum(map(ord, name)))
    random.seed(name)
    model, rename = (with_lora if "lora" in case else with_state)(case, make_base(case, folder), folder)
    rows, tensors = make_rows(folder), {}
    trained = [(rename(n), p) for n, p in model.named_parameters() if p.requires_grad]
    with torch.no_grad():
        for i, row in enumerate(rows[:LOGITS]):
            tensors[f"logits.{i}"] = model(torch.tensor([row["input_ids"]])).logits[0].clone()
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
    save_file(tensors, os.path.join(folder, "expect.safetensors"))
    with open(os.path.join(folder, "expect.json"), "w", encoding="utf-8") as file:
        json.dump(expect, file, indent=1)
        file.write("\n")
    print(f"{name}: loss {expect['eval_loss']:.4f}, after training {expect['losses'][-1]:.4f}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for case_name in sys.argv[1:] or CASES:
        make(case_name, CASES[case_name])
