#!/usr/bin/env python3
"""Makes the small random base models in this folder, each as a Hugging Face directory (BF16) and as GGUF files,
with expect.json holding the digest that engine/model/model.h defines, computed here with hashlib. Every value fits
BF16 and F16 exactly, so the F32 and F16 files hold the same model as the directory. If llama_cpp is
installed, each GGUF is loaded with it and its logits are compared with transformers', so that a mistake in
a row order or a key shows here. Needs torch, transformers, safetensors, gguf, numpy."""
import hashlib, json, math, os, shutil, sys

import gguf
import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

try:
    import llama_cpp
    QUIET = llama_cpp.llama_log_callback(lambda *a: None)
except ImportError:
    llama_cpp = None

HERE = os.path.dirname(os.path.abspath(__file__))
COMMON = dict(vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4,
              num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0)
LLAMA3 = dict(rope_type="llama3", rope_theta=100.0, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
              original_max_position_embeddings=64)
# the digest's text of each rope, written by hand from the case
CASES = {
    "llama": (LlamaForCausalLM, LlamaConfig(**COMMON, rms_norm_eps=1e-5, tie_word_embeddings=True, head_dim=8,
              rope_parameters=LLAMA3), ["f32", "f16", "q8_0"],
              "rope=llama3 theta=100 factor=8 low=1 high=4 original=64", 0),
    "llama-bias": (LlamaForCausalLM, LlamaConfig(**COMMON, rms_norm_eps=1e-6, tie_word_embeddings=False, head_dim=8,
                   attention_bias=True, mlp_bias=True,
                   rope_parameters=dict(rope_type="linear", rope_theta=10000.0, factor=2.0)), ["f16"],
                   "rope=linear theta=10000 factor=2", 0),
    "qwen2": (Qwen2ForCausalLM, Qwen2Config(**COMMON, rms_norm_eps=1e-6, tie_word_embeddings=True,
              rope_parameters=dict(rope_type="default", rope_theta=1e6)), ["f16"],
              "rope=default theta=1000000", 0),
    "qwen3": (Qwen3ForCausalLM, Qwen3Config(**COMMON, rms_norm_eps=1e-6, tie_word_embeddings=False, head_dim=16,
              rope_parameters=dict(rope_type="default", rope_theta=1e6)), ["f16"],
              "rope=default theta=1000000", 0),
}
MODULES = {"self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
           "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
           "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
           "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}


def gguf_name(name):
    plain = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight",
             "lm_head.weight": "output.weight"}
    if name in plain:
        return plain[name]
    _, _, layer, rest = name.split(".", 3)
    module, ending = rest.rsplit(".", 1)
    return f"blk.{layer}.{MODULES[module]}.{ending}"


def permuted(name, w, c):
    if c.model_type != "llama" or not any(p in name for p in ("q_proj", "k_proj")):
        return w
    heads = c.num_attention_heads if "q_proj" in name else c.num_key_value_heads
    return w.reshape(heads, 2, w.shape[0] // heads // 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)


def rope_factors(c):
    p = c.rope_parameters
    out = []
    for i in range(0, c.head_dim, 2):
        wavelength = 2 * math.pi * p["rope_theta"] ** (i / c.head_dim)
        original = p["original_max_position_embeddings"]
        if wavelength < original / p["high_freq_factor"]:
            out.append(1.0)
        elif wavelength > original / p["low_freq_factor"]:
            out.append(p["factor"])
        else:
            smooth = (original / wavelength - p["low_freq_factor"]) / (p["high_freq_factor"] - p["low_freq_factor"])
            out.append(1 / ((1 - smooth) / p["factor"] + smooth))
    return np.array(out, dtype=np.float32)


def write_gguf(path, kind, tensors, c, most=0):
    """`most` tensors in a file, with 0 all of them; the files of a split model get numbered names."""
    w = gguf.GGUFWriter(path, c.model_type, split_max_tensors=most)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    w.add_block_count(c.num_hidden_layers)
    w.add_context_length(c.max_position_embeddings)
    w.add_embedding_length(c.hidden_size)
    w.add_feed_forward_length(c.intermediate_size)
    w.add_head_count(c.num_attention_heads)
    w.add_head_count_kv(c.num_key_value_heads)
    w.add_key_length(head_dim)
    w.add_value_length(head_dim)
    w.add_rope_dimension_count(head_dim)
    w.add_layer_norm_rms_eps(c.rms_norm_eps)
    w.add_rope_freq_base(c.rope_parameters["rope_theta"])
    w.add_vocab_size(c.vocab_size)
    w.add_tokenizer_model("no_vocab")
    w.add_bos_token_id(c.bos_token_id)
    w.add_eos_token_id(c.eos_token_id)
    if c.rope_parameters["rope_type"] == "linear":
        w.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        w.add_rope_scaling_factor(c.rope_parameters["factor"])
    if c.rope_parameters["rope_type"] == "llama3":
        w.add_tensor("rope_freqs.weight", rope_factors(c))
    for name, value in tensors.items():
        value = permuted(name, value, c)
        if value.ndim == 1 or kind == "f32":
            w.add_tensor(gguf_name(name), np.ascontiguousarray(value))
        elif kind == "f16":
            w.add_tensor(gguf_name(name), value.astype(np.float16))
        else:
            q = gguf.GGMLQuantizationType[kind.upper()]
            w.add_tensor(gguf_name(name), gguf.quants.quantize(np.ascontiguousarray(value), q), raw_dtype=q)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


def digest(tensors, c, rope, window):
    blake = lambda data: hashlib.blake2b(data, digest_size=32)
    head_dim = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
    text = "fedlora base 1\n"
    text += (f"layers={c.num_hidden_layers} d_model={c.hidden_size} heads={c.num_attention_heads} "
             f"kv_heads={c.num_key_value_heads} head_dim={head_dim} d_ffn={c.intermediate_size} vocab={c.vocab_size}\n")
    text += "rms_eps=%.9g\n%s\n" % (float(np.float32(c.rms_norm_eps)), rope)
    text += "windows=" + ",".join([str(window)] * c.num_hidden_layers) + "\n"
    if "lm_head.weight" not in tensors:
        tensors = tensors | {"lm_head.weight": tensors["model.embed_tokens.weight"]}
    for name in sorted(tensors):
        t = tensors[name]
        text += f"{name} {','.join(map(str, t.shape))} {blake(t.astype('<f4').tobytes()).hexdigest()}\n"
    return blake(text.encode()).hexdigest()


def compare_with_llama_cpp(path, model, tolerance):
    if llama_cpp is None:
        print("llama_cpp is not installed: logits not compared")
        return
    ids = [1, 5, 9, 33, 17, 2, 39, 8] * 16  # past the llama3 original length
    with torch.no_grad():
        wanted = model(torch.tensor([ids])).logits[0].numpy()
    lc = llama_cpp
    lc.llama_log_set(QUIET, None)
    params = lc.llama_model_default_params()
    params.use_extra_bufts = False  # repacking for AMX crashes on matrices this small
    m = lc.llama_model_load_from_file(path.encode(), params)
    params = lc.llama_context_default_params()
    params.n_ctx, params.n_batch, params.type_k, params.type_v = 256, 256, 0, 0
    params.flash_attn_type = 0
    params.n_threads = params.n_threads_batch = 1
    ctx = lc.llama_init_from_model(m, params)
    batch = lc.llama_batch_init(len(ids), 0, 1)
    batch.n_tokens = len(ids)
    for i, t in enumerate(ids):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.logits[i] = t, i, 1, 1
        batch.seq_id[i][0] = 0
    assert lc.llama_decode(ctx, batch) == 0
    got = np.stack([np.ctypeslib.as_array(lc.llama_get_logits_ith(ctx, i), (wanted.shape[1],)).copy()
                    for i in range(len(ids))])
    worst = np.abs(got - wanted).max() / np.abs(wanted).max()
    print(f"{os.path.basename(path)}: llama.cpp's logits differ by {worst:.2g} relative")
    assert worst < tolerance, path


def main():
    for name, (cls, config, kinds, rope, window) in CASES.items():
        torch.manual_seed(7)
        folder = os.path.join(HERE, name)
        shutil.rmtree(folder, ignore_errors=True)
        model = cls(config)
        for key, p in model.named_parameters():
            noise = torch.randn(p.shape)
            p.data = ((1 + 0.2 * noise) if "norm" in key else noise * (0.2 if p.ndim > 1 else 0.5)).bfloat16()
            p.data[p.data.abs() < 2**-12] = 0  # what is below is subnormal in F16
        model.bfloat16().save_pretrained(folder)
        os.path.exists(g := os.path.join(folder, "generation_config.json")) and os.remove(g)
        tensors = {k: v.detach().float().numpy().copy() for k, v in model.state_dict().items()}
        if config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        model = cls.from_pretrained(folder, dtype=torch.float32)  # .float() would keep rounded frequencies
        for kind in kinds:
            path = os.path.join(folder, f"{kind}.gguf")
            write_gguf(path, kind, tensors, config)
            compare_with_llama_cpp(path, model, {"f32": 1e-4, "f16": 0.003, "q8_0": 0.05}[kind])
        if name == "llama":
            write_gguf(os.path.join(folder, "split.gguf"), "f16", tensors, config, most=5)
        with open(os.path.join(folder, "expect.json"), "w") as f:
            json.dump({"digest": digest(tensors, config, rope, window)}, f, indent=1)
    old = os.path.join(HERE, "llama-bias", "config.json")  # one in the style before transformers 5
    with open(old) as f:
        c = json.load(f)
    p = c.pop("rope_parameters")
    c.update(rope_theta=p["rope_theta"], rope_scaling={"type": "linear", "factor": p["factor"]},
             torch_dtype=c.pop("dtype"), head_dim=None)
    with open(old, "w") as f:
        json.dump(c, f, indent=1)


if __name__ == "__main__":
    sys.exit(main())
