#!/usr/bin/env python3
"""`fedlora aggregate` on adapters with trained biases and modules saved whole, made and loaded by PEFT.

Three adapters of different ranks over one random Qwen2 (whose attention has biases), every bias trained and the
output head saved whole, one on some layers only, one with a module excluded, the last in bfloat16. This script
computes their mean as plain weights: W0 + sum p_k s_k B_k A_k, and the weighted mean of heads and biases. The logits
of that model are compared with those of the base plus the output of `fedlora aggregate`, loaded by PEFT.
"""

import os
import sys

import oracle

torch, transformers, peft, safetensors = oracle.need("torch", "transformers", "peft", "safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402  (only where safetensors is there)

WEIGHTS = [0.5, 0.2, 0.3]
COMMON = dict(task_type="CAUSAL_LM", bias="all", modules_to_save=["lm_head"])
CONFIGS = {
    "a": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"]),
    "b": dict(r=6, lora_alpha=6, target_modules=["q_proj", "k_proj"], use_rslora=True, layers_to_transform=[0, 2]),
    "c": dict(r=2, lora_alpha=5, target_modules="all-linear", exclude_modules=["k_proj"]),
}


def model_of(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def make_adapter(base, folder, config, seed):
    """Saves it; its share of every weight by plain names: changes to add, values in place of the base's."""
    torch.manual_seed(seed)
    model = peft.get_peft_model(model_of(base), peft.LoraConfig(**COMMON, **config))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    if seed == 2:  # what bfloat16 holds, so that the file says all
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.bfloat16().float()
    model.save_pretrained(folder)
    if seed == 2:
        path = os.path.join(folder, "adapter_model.safetensors")
        save_file({k: v.bfloat16() for k, v in load_file(path).items()}, path)
    merged = model.merge_and_unload().state_dict()
    return merged


def main():
    with oracle.work_folder() as work:
        base = os.path.join(work, "base")
        oracle.make_model(base, "qwen2")
        folders = {name: os.path.join(work, name) for name in CONFIGS}
        merged = [make_adapter(base, folders[name], c, seed) for seed, (name, c) in enumerate(CONFIGS.items())]
        # W0 + change is linear in the change, so the mean of the merged weights is what they mean together.
        expected = model_of(base)
        means = {k: sum(w * m[k].double() for w, m in zip(WEIGHTS, merged)).float() for k in merged[0]}
        expected.load_state_dict(means)
        out = os.path.join(work, "out")
        weights = ",".join(str(w * 40) for w in WEIGHTS)
        oracle.fedlora("aggregate", *folders.values(), "--weights", weights, "-o", out, "--verify")
        ours = peft.PeftModel.from_pretrained(model_of(base), out).eval()
        torch.manual_seed(9)
        ids = torch.randint(0, 256, (3, 20))
        with torch.no_grad():
            got, want = ours(input_ids=ids).logits, expected.eval()(input_ids=ids).logits
            plain = model_of(base).eval()(input_ids=ids).logits
        oracle.check("aggregate of saved modules, loaded by PEFT", oracle.relative_difference(got, want), 1e-5)
        if oracle.relative_difference(plain, want) < 1e-2:
            sys.exit("FAILED: the adapters change nothing, so nothing was compared")


if __name__ == "__main__":
    main()
