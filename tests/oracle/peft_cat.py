#!/usr/bin/env python3
"""`fedlora aggregate` is the same function as PEFT's add_weighted_adapter(combination_type="cat").

Three adapters of different ranks, scales (one rsLoRA, one with patterns) and target modules over one random
model: the logits of PEFT's own combination are compared with those of the result of `fedlora aggregate`, loaded by
PEFT; exactly, and cut to the rank at which nothing is lost. Once over a Llama and once over a GPT-2, whose layers store W
transposed (fan_in_fan_out). With --golden DIR it writes the adapters and PEFT's weight changes as (d_out, d_in),
which tests/unit/combine.c reads (tests/golden/agg, tests/golden/agg-conv).
"""

import json
import os
import sys

import oracle

torch, transformers, peft, safetensors = oracle.need("torch", "transformers", "peft", "safetensors")
from safetensors.torch import save_file  # noqa: E402  (only where safetensors is there)

WEIGHTS = [0.5, 0.2, 0.3]
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
CONFIGS = {
    "a": dict(r=4, lora_alpha=8, target_modules=ATTENTION),
    "b": dict(r=9, lora_alpha=6, target_modules=ATTENTION + ["gate_proj", "down_proj"], use_rslora=True),
    "c": dict(
        r=2,
        lora_alpha=5,
        target_modules=["q_proj", "down_proj"],
        rank_pattern={"down_proj": 7},
        alpha_pattern={"layers.0.self_attn.q_proj": 3},
    ),
}
CONV = {
    "a": dict(r=3, lora_alpha=8, target_modules=["c_attn"], fan_in_fan_out=True),
    "b": dict(r=5, lora_alpha=6, target_modules=["c_attn", "c_proj"], use_rslora=True, fan_in_fan_out=True),
    "c": dict(
        r=2,
        lora_alpha=5,
        target_modules=["attn.c_proj", "c_fc"],
        rank_pattern={"c_fc": 6},
        fan_in_fan_out=True,
    ),
}
FAMILIES = {"agg": ("llama", CONFIGS), "agg-conv": ("gpt2", CONV)}


def model_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_base(folder, kind):
    torch.manual_seed(5)
    if kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=48, n_embd=20, n_layer=2, n_head=2, n_positions=64, n_inner=36, initializer_range=0.2
        )
        transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
        return
    config = transformers.LlamaConfig(
        vocab_size=48,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        initializer_range=0.2,
    )
    transformers.AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)


def make_adapter(base, folder, config, seed):
    torch.manual_seed(seed)
    model = peft.get_peft_model(model_of(base), peft.LoraConfig(task_type="CAUSAL_LM", **config))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    os.remove(os.path.join(folder, "README.md"))
    path = os.path.join(folder, "adapter_config.json")
    with open(path, encoding="utf-8") as file:
        text = json.load(file)
    text["base_model_name_or_path"] = None  # a folder of this run only
    with open(path, "w", encoding="utf-8") as file:
        json.dump(text, file, indent=1, sort_keys=True)


def combined(base, folders):
    """PEFT's own combination; the model with it active, and every module's change of weight."""
    names = list(folders)
    model = peft.PeftModel.from_pretrained(model_of(base), folders[names[0]], adapter_name=names[0])
    for name in names[1:]:
        model.load_adapter(folders[name], adapter_name=name)
    model.add_weighted_adapter(names, WEIGHTS, "all", combination_type="cat")
    model.set_adapter("all")
    changes = {}
    for name, module in model.base_model.model.named_modules():
        if hasattr(module, "get_delta_weight") and "all" in module.lora_A:
            change = module.get_delta_weight("all").detach()
            changes[name] = (change.T if module.fan_in_fan_out else change).contiguous()
    return model.eval(), changes


def logits(model):
    torch.manual_seed(9)
    ids = torch.randint(0, 48, (3, 20))
    with torch.no_grad():
        return model(input_ids=ids).logits


def check_family(kind, configs, golden):
    with oracle.work_folder() as work:
        base = os.path.join(work, "base")
        make_base(base, kind)
        folders = {name: os.path.join(golden or work, name) for name in configs}
        for seed, (name, config) in enumerate(configs.items()):
            make_adapter(base, folders[name], config, seed)
        model, changes = combined(base, folders)
        if golden:
            save_file(changes, os.path.join(golden, "expect.safetensors"))
            return
        expected = logits(model)
        for cut in ([], ["--rank", "20"]):
            out = os.path.join(work, "out" + str(len(cut)))
            weights = ",".join(str(w * 40) for w in WEIGHTS)  # any unit
            oracle.fedlora("aggregate", *folders.values(), "--weights", weights, "-o", out, "--verify", *cut)
            ours = logits(peft.PeftModel.from_pretrained(model_of(base), out).eval())
            name = f"{kind}: aggregate {' '.join(cut)}".strip()
            oracle.check(f"{name}, loaded by PEFT", oracle.relative_difference(ours, expected), 1e-5)
        plain = logits(model_of(base))
        if oracle.relative_difference(plain, expected) < 1e-2:
            sys.exit("FAILED: the adapters change nothing, so nothing was compared")


def main():
    golden = sys.argv[2] if len(sys.argv) > 2 and sys.argv[1] == "--golden" else None
    for folder, (kind, configs) in FAMILIES.items():
        check_family(kind, configs, os.path.join(golden, folder) if golden else None)


if __name__ == "__main__":
    main()
