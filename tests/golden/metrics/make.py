"""Metrics as the packages that others use compute them, on random numbers.

python3 make.py   (packages numpy, scipy, nltk, vendi-score; versions in the file that it writes)
"""

import json
import warnings
from collections import Counter
from importlib.metadata import version
from pathlib import Path

import numpy as np
import scipy.sparse
from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu
from scipy import stats

if not hasattr(scipy.sparse, "csr"):  # the namespace that vendi-score 0.0.3 asks for has gone
    scipy.sparse.csr = scipy.sparse
from vendi_score import vendi

warnings.filterwarnings("ignore", module="nltk")  # that a score is 0
rng = np.random.default_rng(20260731)
INFINITE = None  # JSON has no infinity
ORDERS = [0.5, 1, 2, 7, INFINITE]
out = {"versions": {name: version(name) for name in ["numpy", "scipy", "nltk", "vendi-score"]}}


def vendi_orders(score):
    return [float(score("inf" if q is INFINITE else q)) for q in ORDERS]


def unit(x):
    return x / np.linalg.norm(x, axis=1, keepdims=True)


# Kernels of full rank (random directions with many dimensions), radial ones, and ones with two groups.
out["vendi_kernels"] = []
for n in [1, 2, 3, 5, 8, 16, 24]:
    x = unit(rng.standard_normal((n, 2 * n + 3)))
    y = rng.standard_normal((n, 4))
    radial = np.exp(-((y[:, None] - y[None]) ** 2).sum(-1) / 2)
    z = unit(rng.standard_normal((n, 2 * n + 3)) + 2 * (np.arange(n) % 2)[:, None])
    for kernel in [x @ x.T, radial, z @ z.T]:
        kernel = (kernel + kernel.T) / 2
        np.fill_diagonal(kernel, 1.0)
        out["vendi_kernels"].append({"kernel": kernel.tolist(), "orders": ORDERS, "scores": vendi_orders(lambda q: vendi.score_K(kernel, q=q))})

# Fewer dimensions than rows, and more; of any length. score_dual takes the d × d matrix.
out["embeddings"] = []
for n, d in [(6, 3), (16, 5), (5, 12), (12, 12), (30, 8)]:
    x = rng.standard_normal((n, d)) * rng.uniform(0.1, 9, (n, 1)) + 0.7
    cosines = unit(x) @ unit(x).T
    out["embeddings"].append(
        {
            "rows": x.tolist(),
            "orders": ORDERS,
            "scores": vendi_orders(lambda q: vendi.score_dual(x, q=q)),
            "mean_cosine": float(cosines[np.triu_indices(n, 1)].mean()),
        }
    )

# Completions of few words, so that n-grams come again; some shorter than the highest order.
out["texts"] = []
smoothing = SmoothingFunction()
for count, words, longest in [(2, 5, 12), (4, 6, 20), (6, 12, 30), (5, 3, 6), (8, 50, 40)]:
    texts = [rng.integers(0, words, rng.integers(1, longest + 1)).tolist() for _ in range(count)]
    bleu = {}
    for name, method in [("none", smoothing.method0), ("epsilon", smoothing.method1), ("add_one", smoothing.method2)]:
        bleu[name] = [
            float(np.mean([sentence_bleu(texts[:i] + texts[i + 1 :], text, [1 / order] * order, method) for i, text in enumerate(texts)]))
            for order in range(1, 6)
        ]
    distinct = []
    for n in [1, 2]:
        grams = Counter(tuple(text[i : i + n]) for text in texts for i in range(len(text) - n + 1))
        distinct.append(len(grams) / sum(grams.values()))
    out["texts"].append({"texts": texts, "self_bleu": bleu, "distinct": distinct})

out["distributions"] = []
for size in [2, 10, 500]:
    p, q = rng.dirichlet(np.ones(size)), rng.dirichlet(np.full(size, 0.5))
    out["distributions"].append(
        {"new": np.log(p).tolist(), "reference": np.log(q).tolist(), "entropy": float(stats.entropy(p)), "kl": float(stats.entropy(p, q))}
    )

# Numbers with ties and without; the partial correlation as the correlation of least-squares residuals of ranks.
out["correlations"] = []
for n, ties in [(4, False), (12, True), (40, False), (200, True)]:
    data = rng.standard_normal((4, n))
    data[1] += 0.8 * data[0] + 0.5 * data[2]
    data[0] += 0.6 * data[2] - 0.4 * data[3]
    if ties:
        data = np.round(data * 2)
    x, y, *controls = data
    ranks = np.array([stats.rankdata(row) for row in data])
    design = np.column_stack([np.ones(n), *ranks[2:]])
    left = [row - design @ np.linalg.lstsq(design, row, rcond=None)[0] for row in ranks[:2]]
    out["correlations"].append(
        {
            "x": x.tolist(),
            "y": y.tolist(),
            "controls": [control.tolist() for control in controls],
            "pearson": float(stats.pearsonr(x, y).statistic),
            "spearman": float(stats.spearmanr(x, y).statistic),
            "partial": float(stats.pearsonr(*left).statistic),
        }
    )

out["mcnemar"] = [
    {"only_new": a, "only_old": b, "p_value": float(stats.binomtest(a, a + b, 0.5).pvalue)}
    for a, b in [(1, 0), (3, 9), (9, 3), (10, 10), (40, 61), (500, 400), (1200, 1350)]
]

# Many resamples, so that only little of the two programs' own chance is left.
out["bootstrap"] = []
for values in [rng.exponential(size=25), rng.beta(0.4, 2.0, 60), (rng.random(40) < 0.12).astype(float)]:
    intervals = {}
    for name in ["percentile", "bca"]:
        got = stats.bootstrap((values,), np.mean, n_resamples=200_000, batch=10_000, confidence_level=0.95, method=name, rng=np.random.default_rng(1))
        intervals[name] = [float(got.confidence_interval.low), float(got.confidence_interval.high)]
    out["bootstrap"].append({"values": values.tolist(), **intervals})

Path(__file__).with_name("metrics.json").write_text(json.dumps(out, separators=(",", ":")) + "\n")
