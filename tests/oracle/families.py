#!/usr/bin/env python3
"""Every switch of every family, as transformers writes it, gives transformers' logits.

Random small models over the families' configuration fields (biases, head sizes, windows by layer, rope scalings,
tied and separate heads, types, shards, both styles of config.json), each through `fedlora eval --logits`."""

import json
import os

import oracle

torch, transformers, safetensors = oracle.need("torch", "transformers", "safetensors")
from safetensors.torch import load_file  # noqa: E402

BOUND = 1e-5
COMMON = dict(vocab_size=96, hidden_size=48, intermediate_size=80, num_hidden_layers=3, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=256, initializer_range=0.2)
LLAMA3 = dict(rope_type="llama3", rope_theta=2000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=3.0,
              original_max_position_embeddings=24)
LINEAR = dict(rope_type="linear", rope_theta=500.0, factor=3.0)
PLAIN = dict(rope_type="default", rope_theta=20000.0)
YARN = dict(rope_type="yarn", rope_theta=300.0, factor=3.0, original_max_position_embeddings=24, beta_fast=3.0)
LONG = dict(rope_type="longrope", rope_theta=300.0, original_max_position_embeddings=16,
            short_factor=[1.0, 1.2, 1.5, 2.0, 2.2, 3.0], long_factor=[1.3, 2.0, 4.0, 7.0, 9.0, 12.0])
PHI = dict(pad_token_id=0, original_max_position_embeddings=16)
F16, BF16 = torch.float16, torch.bfloat16
MIXED = ["full_attention", "sliding_attention", "full_attention"]

CASES = [
    # model type, fields, how it is saved
    ("llama", dict(tie_word_embeddings=True, rope_parameters=PLAIN), dict(old=True)),
    ("llama", dict(head_dim=20, attention_bias=True, rope_parameters=LLAMA3), dict(type=BF16)),
    ("llama", dict(mlp_bias=True, num_key_value_heads=1, rope_parameters=LINEAR, rms_norm_eps=1e-2), dict(old=True)),
    ("llama", dict(num_key_value_heads=4, attention_bias=True, mlp_bias=True, rope_parameters=LLAMA3),
     dict(old=True, shard="20KB")),
    ("mistral", dict(sliding_window=7, rope_parameters=PLAIN), dict(old=True)),
    ("mistral", dict(sliding_window=None, head_dim=16, rope_parameters=LINEAR), dict(type=F16)),
    ("mistral", dict(sliding_window=1, tie_word_embeddings=True, rope_parameters=PLAIN), dict(shard="30KB")),
    ("qwen2", dict(use_sliding_window=True, sliding_window=5, max_window_layers=1, rope_parameters=PLAIN), dict()),
    ("qwen2", dict(use_sliding_window=True, sliding_window=9, layer_types=MIXED, rope_parameters=LINEAR),
     dict(type=BF16)),
    ("qwen2", dict(sliding_window=4, max_window_layers=0, tie_word_embeddings=True, rope_parameters=LLAMA3),
     dict(old=True)),
    ("qwen3", dict(head_dim=24, attention_bias=True, rope_parameters=PLAIN), dict(old=True)),
    ("qwen3", dict(head_dim=8, use_sliding_window=True, sliding_window=6, max_window_layers=2,
                   tie_word_embeddings=True, rope_parameters=LINEAR), dict(type=F16, shard="25KB")),
    ("llama", dict(rope_parameters=YARN | dict(truncate=False, mscale=0.7, mscale_all_dim=1.3)), dict(old=True)),
    ("qwen3", dict(head_dim=16, rope_parameters=YARN), dict(type=BF16)),
    ("gemma2", dict(head_dim=20, attention_bias=True, sliding_window=6, query_pre_attn_scalar=24, layer_types=MIXED,
                    attn_logit_softcapping=2.0, rope_parameters=PLAIN), dict(old=True)),
    ("gemma2", dict(head_dim=12, attn_logit_softcapping=None, final_logit_softcapping=None, sliding_window=3),
     dict(type=BF16, shard="30KB")),
    ("gemma3_text", dict(head_dim=16, query_pre_attn_scalar=9, sliding_window=5, num_hidden_layers=7,
                         final_logit_softcapping=3.0), dict(type=BF16)),
    ("phi3", dict(sliding_window=5, rope_parameters=PLAIN | dict(partial_rotary_factor=0.5), **PHI), dict()),
    ("phi3", dict(num_key_value_heads=1, tie_word_embeddings=True, rope_parameters=LONG, **PHI), dict(old=True)),
    ("granite", dict(attention_bias=True, mlp_bias=True, attention_multiplier=0.4, logits_scaling=5.0,
                     embedding_multiplier=3.0, residual_multiplier=0.5), dict(type=F16)),
    ("olmo2", dict(attention_bias=True, num_key_value_heads=1, rope_parameters=LINEAR, pad_token_id=0), dict()),
    ("smollm3", dict(no_rope_layer_interval=2, use_sliding_window=True, sliding_window=6, attention_bias=True,
                     rope_parameters=YARN, pad_token_id=0), dict()),
]


def old_style(path):
    """config.json as it was before transformers 5."""
    with open(path, encoding="utf-8") as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    config["rope_scaling"] = None if kind == "default" else {"type" if kind == "linear" else "rope_type": kind, **rope}
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    with open(path, "w", encoding="utf-8") as file:
        json.dump(config, file)


def make(folder, kind, fields, saved, seed):
    torch.manual_seed(seed)
    config = transformers.AutoConfig.for_model(kind, **(COMMON | fields))
    model = transformers.AutoModelForCausalLM.from_config(config)
    for name, p in model.named_parameters():
        if "norm" in name:
            p.data += 0.3 * torch.randn(p.shape)
        elif name.endswith("bias"):
            torch.nn.init.normal_(p, std=0.3)
    model.to(saved.get("type", torch.float32)).save_pretrained(folder, max_shard_size=saved.get("shard", "1GB"))
    if saved.get("old"):
        old_style(os.path.join(folder, "config.json"))
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def main():
    torch.set_num_threads(1)
    with oracle.work_folder() as work:
        data, out = os.path.join(work, "rows.jsonl"), os.path.join(work, "logits.safetensors")
        rows = oracle.make_rows(data, count=5, vocab=COMMON["vocab_size"])
        for seed, (kind, fields, saved) in enumerate(CASES):
            folder = os.path.join(work, str(seed))
            model = make(folder, kind, fields, saved, seed)
            oracle.fedlora("eval", "--base", folder, "--data", data, "--precision", "f32", "--logits", out, "--force")
            got, worst = load_file(out), 0.0
            for i, row in enumerate(rows):
                with torch.no_grad():
                    wanted = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
                worst = max(worst, oracle.relative_difference(got[f"logits.{i}"], wanted))
            oracle.check(f"{kind} {fields} {saved}", worst, BOUND)


if __name__ == "__main__":
    main()
