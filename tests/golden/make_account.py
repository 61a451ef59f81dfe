#!/usr/bin/env python3
"""Values of Google's dp_accounting for tests/golden/account.c: settings that its published tables lack.

    pip install dp-accounting; tests/golden/make_account.py > tests/golden/account.json

Mixed mechanisms, replacing one unit, deltas from 1e-9 to 1e-2, rates from 1e-4. PLD on its grid of 1e-4, RDP with its
default orders (null where its accountant has no such relation)."""
import json
from importlib.metadata import version

import dp_accounting as dp
from dp_accounting.pld import PLDAccountant
from dp_accounting.rdp import RdpAccountant

ADD, REPLACE = dp.NeighboringRelation.ADD_OR_REMOVE_ONE, dp.NeighboringRelation.REPLACE_ONE


def event(noise, sampling):
    gaussian = dp.GaussianDpEvent(noise)
    return gaussian if sampling == 1 else dp.PoissonSampledDpEvent(sampling, gaussian)


def epsilon(accountant, events, delta):
    for noise, sampling, count in events:
        accountant.compose(event(noise, sampling), count)
    return float(accountant.get_epsilon(delta))


PLANS = [
    [(1.1, 0.02, 300), (2.0, 0.1, 50)],
    [(1.1, 0.02, 300), (3.0, 1, 4), (0.9, 0.005, 1000)],
    [(4.0, 1, 10), (6.0, 1, 20), (1.5, 0.25, 5)],
    [(0.7, 0.001, 5000), (1.0, 0.3, 2)],
    [(0.45, 0.05, 7)],
    [(0.8, 1e-4, 20000)],
    [(2.5, 0.6, 300)],
    [(1.0, 0.999, 3)],
]
cases = []
for plan in PLANS:
    for delta in (1e-2, 1e-6, 1e-9):
        cases.append({"adjacency": "add-remove", "events": plan, "delta": delta,
                      "pld": epsilon(PLDAccountant(ADD), plan, delta), "rdp": epsilon(RdpAccountant(), plan, delta)})
for plan in PLANS[:3] + PLANS[4:5]:
    cases.append({"adjacency": "replace-one", "events": plan, "delta": 1e-6,
                  "pld": epsilon(PLDAccountant(REPLACE), plan, 1e-6), "rdp": None})
print(json.dumps({"dp_accounting": version("dp-accounting"), "cases": cases}, indent=1))
