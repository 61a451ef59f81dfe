#!/usr/bin/env python3
"""Makes the files of this folder: three members' updates of one round and the weight changes that follow from the
definitions of flexlora, florist, lora-fair and fedex, by dense matrices in NumPy (float64, np.linalg).

  same.N.safetensors    updates of rank 4 at scale 2, for the methods that average factors
  mixed.N.safetensors   updates of ranks 2, 5 and 6 at scale 2, for flexlora (a run of rank 6)
  fresh.N.safetensors   the same ranks, each with a different scale (one rsLoRA), for florist
  expect.safetensors    "METHOD.MODULE": what the next state adds to W0, (d_out, d_in) float64 as two float32, the
                        rounded number and the rest; "lora-fair.MODULE.B": the corrected B
  expect.json           florist's ranks

Updates look like trained ones: singular values that decay, members that partly agree. usage: make.py
"""

import json
import os

import numpy as np
from safetensors.numpy import save_file

HERE = os.path.dirname(os.path.abspath(__file__))
MODULES = {"layers.0.k_proj": (12, 30), "layers.0.q_proj": (30, 30), "layers.1.down_proj": (24, 40)}
WEIGHTS = [3.0, 1.0, 2.0]
ENERGY, FAIR_LAMBDA, RUN_RANK = 0.995, 0.01, 6


def member(rng, shared, shape, rank, scale):
    """Factors whose product is a common part and one of this member's own."""
    d_out, d_in = shape
    decay = 0.6 ** np.arange(rank)
    A = shared["A"][:rank] + 0.5 * rng.standard_normal((rank, d_in)) / np.sqrt(d_in)
    B = shared["B"][:, :rank] * decay + 0.02 * rng.standard_normal((d_out, rank))
    return A.astype(np.float32), (B / scale).astype(np.float32)


def write_updates(rng, name, ranks, alphas, rslora):
    updates = []
    shared = {
        m: {"A": rng.standard_normal((8, n)) / np.sqrt(n), "B": 0.1 * rng.standard_normal((d, 8))}
        for m, (d, n) in MODULES.items()
    }
    for k, (rank, alpha, rs) in enumerate(zip(ranks, alphas, rslora)):
        scale = alpha / (np.sqrt(rank) if rs else rank)
        update, tensors = {"scale": scale}, {}
        for m, shape in MODULES.items():
            A, B = member(rng, shared[m], shape, rank, scale)
            update[m] = (A.astype(np.float64), B.astype(np.float64))
            tensors[f"base_model.model.{m}.lora_A.weight"] = A
            tensors[f"base_model.model.{m}.lora_B.weight"] = B
        metadata = {"fedlora.kind": "update", "fedlora.rank": str(rank), "fedlora.alpha": repr(float(alpha))}
        if rs:
            metadata["fedlora.rslora"] = "true"
        save_file(tensors, os.path.join(HERE, f"{name}.{k}.safetensors"), metadata)
        updates.append(update)
    return updates


def mean(updates, m, of):
    p = np.array(WEIGHTS) / sum(WEIGHTS)
    return sum(w * of(u["scale"], *u[m]) for w, u in zip(p, updates))


def product(scale, A, B):
    return scale * B @ A


def leading(X, rank):
    U, s, Vt = np.linalg.svd(X)
    return (U[:, :rank] * s[:rank]) @ Vt[:rank]


def flexlora(updates, m):
    return leading(mean(updates, m, product), RUN_RANK)


def florist(updates, m, ranks):
    X = mean(updates, m, product)
    s = np.linalg.svd(X, compute_uv=False)
    share = np.cumsum(s**2) / np.sum(s**2)
    ranks[m] = int(np.argmax(share >= ENERGY)) + 1
    return leading(X, ranks[m])


def lora_fair(updates, m):
    scale = updates[0]["scale"]
    A, B = mean(updates, m, lambda s, A, B: A), mean(updates, m, lambda s, A, B: B)
    E = mean(updates, m, lambda s, A, B: B @ A) - B @ A
    r = len(A)
    ridge = FAIR_LAMBDA * np.trace(A @ A.T) / r
    # the least squares problem itself: min |E - D A|^2 + ridge |D|^2
    rows = np.vstack([A.T, np.sqrt(ridge) * np.eye(r)])
    D = np.linalg.lstsq(rows, np.vstack([E.T, np.zeros((r, len(B)))]), rcond=None)[0].T
    return scale * (B + D) @ A, B + D


def fedex(updates, m):
    """The mean of the factors and the residual, added up."""
    scale = updates[0]["scale"]
    A, B = mean(updates, m, lambda s, A, B: A), mean(updates, m, lambda s, A, B: B)
    residual = mean(updates, m, lambda s, Ak, Bk: s * (Bk - B) @ (Ak - A))
    return scale * B @ A + residual


def main():
    rng = np.random.default_rng(11)
    same = write_updates(rng, "same", [4, 4, 4], [8, 8, 8], [False] * 3)
    mixed = write_updates(rng, "mixed", [2, 5, 6], [4, 10, 12], [False] * 3)
    fresh = write_updates(rng, "fresh", [2, 5, 6], [16, 3, 9], [False, True, False])
    expect, ranks = {}, {}
    for m in MODULES:
        expect[f"flexlora.{m}"] = flexlora(mixed, m)
        expect[f"florist.{m}"] = florist(fresh, m, ranks)
        expect[f"lora-fair.{m}"], expect[f"lora-fair.{m}.B"] = lora_fair(same, m)
        expect[f"fedex.{m}"] = fedex(same, m)
    tensors = {}
    for name, x in expect.items():
        high = x.astype(np.float32)
        tensors[name] = np.stack([high, (x - high).astype(np.float32)])
    save_file(tensors, os.path.join(HERE, "expect.safetensors"))
    with open(os.path.join(HERE, "expect.json"), "w") as f:
        json.dump({"florist": ranks}, f, indent=1, sort_keys=True)
        f.write("\n")


if __name__ == "__main__":
    main()
