"""Make the small set of goldens that the repository carries from a full one, in the same format.

    python tests/goldens/trim.py FULL_DIRECTORY tests/goldens/data

A case is described by its settings; cases are taken until every value of every setting is covered, and for the sampler
every pair of values that occurs.  Cheap cases go first.  Weights cannot be trimmed: they are most of the size.
"""

import json
import sys
from itertools import combinations
from pathlib import Path

from safetensors.torch import load_file, save_file

LIMIT = 4_000_000
SAMPLER = "api model dtype style sampling_steps stochast_ratio extrapol_ratio time_dist_ctrl rfba_gap_steps error nan"
SPARE = ("x_hat_used", "z_hat_used")  # tensors that no test reads
READ_OF_A_STEP = ("param", "grad", "ema", "loss", "draw", "rec/mask", "rec/t", "rec/tt")

SAMPLES = {  # the sampler has its own goldens; here the styles are spread over the backbones
    "qwen": ("sample/few1_s0.8/float32",),
    "zimage": ("sample/few1_s0.8/bfloat16",),
    "sd3": ("lora_sample/few2_gap0.6",),
    "sana": ("sample/any4/float32",),
}


def flat(case):
    return {name: json.dumps(case.get(name)) for name in SAMPLER.split()}


def settings(case):
    return {name: json.dumps(value) for name, value in (case.get("cfg", {}) | {"batch": case["batch"]}).items()} | {
        name: json.dumps(case.get(name)) for name in ("dtype", "init_scale")
    }


def cover(cases, describe, size, pairs=()):
    """Ids of few cases that hold every value of every setting and every pair of values of the settings in `pairs`."""

    def features(case):
        values = describe(case)
        return set(values.items()) | set(combinations([item for item in values.items() if item[0] in pairs], 2))

    have, left, taken = set(), {id: features(case) for id, case in cases.items()}, []
    while left:
        id = max(left, key=lambda id: len(left[id] - have) / size(id))
        if not left[id] - have:
            return taken
        have |= left.pop(id)
        taken.append(id)
    return taken


def write(directory, name, tensors, index):
    # safetensors repeats every name in its header, so few long tensors are cheaper than many short ones
    save_file({k: v.contiguous() for k, v in tensors.items()}, directory / f"{name}.safetensors")
    (directory / f"{name}.json").write_text(json.dumps(index, separators=(",", ":")))


def read(directory, name):
    return load_file(directory / f"{name}.safetensors"), json.loads((directory / f"{name}.json").read_text())


def trim_sampler(full, out):
    tensors, index = read(full, "sampler")
    bulk = {}
    for key, t in tensors.items():
        bulk[key.split("/")[0]] = bulk.get(key.split("/")[0], 300) + t.nbytes + 100
    size = lambda id: bulk.get(id, 300)
    recorded = {id: case for id, case in index["cases"].items() if f"{id}/F" in tensors}
    ids = cover(recorded, flat, size, pairs=("api", "model", "dtype", "style", "stochast_ratio"))
    grid = ("style", "stochast_ratio", "extrapol_ratio", "time_dist_ctrl", "rfba_gap_steps")
    ids += [id for id in cover(index["cases"], flat, size, pairs=grid) if id not in ids]
    second = cover(index["order2"], flat, size, pairs=("api", "style", "error", "nan"))
    describe = lambda case: {k: json.dumps(v) for k, v in case.items() if k != "t_steps"}
    schedules = cover(index["schedules"], describe, lambda id: 1, pairs=("gap", "tdc", "steps", "latent_dtype"))
    keep = {*ids, *second, *schedules}
    index["cases"] = {id: index["cases"][id] for id in sorted(ids)}
    index["order2"] = {id: index["order2"][id] for id in sorted(second)}
    index["schedules"] = {id: index["schedules"][id] for id in sorted(schedules)}
    common = lambda key: key.startswith("mlp.") or key in ("z0", "noise_bank")
    kept = {k: v for k, v in tensors.items() if common(k) or k in keep or k.split("/")[0] in keep}
    write(out, "sampler", {k: v for k, v in kept.items() if not k.endswith(SPARE)}, index)


def trim_training(full, out, name):
    """One step a case, but two of one with an average: the second sees it, and a warmed-up decay."""
    tensors, index = read(full, name)
    cases = {id: case for id, case in index.items() if isinstance(case, dict) and not id.startswith("_")}
    ids = cover(cases, settings, lambda id: 4 + cases[id]["batch"], pairs=("estimate_order", "using_twinflow"))
    averaged = [id for id in ids if 0 < cases[id]["cfg"]["ema_decay_rate"] < 1]
    steps = {id: 2 if id in averaged[:1] else 1 for id in ids}
    kept = {}
    for key, tensor in tensors.items():
        id, _, rest = key.partition("/")
        step, _, what = rest.partition("/")
        if id not in cases:
            kept[key] = tensor
        elif id in steps and (step == "teacher" or int(step.removeprefix("s")) < steps[id]):
            if name == "train_mnist" or step == "teacher" or what.startswith(READ_OF_A_STEP) and "target" not in what:
                kept[key] = tensor
    index = {id: case for id, case in index.items() if id not in cases or id in steps}
    for id, n in steps.items():
        index[id]["steps"] = [
            {k: v for k, v in step.items() if k in ("ema_decay_used", "terms", "loss")} for step in index[id]["steps"][:n]
        ]
    used = {f"b{case['batch']}" for case in index.values() if isinstance(case, dict) and "batch" in case}
    kept = {k: v for k, v in kept.items() if not k.startswith("data/") or k.split("/")[1] in used or name == "train"}
    write(out, name, kept, index)


def trim_backbone(full, out, name, samples):
    """Forwards: one of every relation of t and r, fewer where the times are folded.  The named samples."""
    tensors, index = read(full, name)

    def relation(tag):
        case, kind = index["combos"][tag], tag.rstrip("0123456789")
        t, r = case["t"][0], case["tt"][0]
        return kind, *{"pair": (t > r, t > 0, t < 0, r == 0), "lora": (r == 0,)}.get(kind, ())

    varied = lambda tag: len(set(index["combos"][tag]["t"])) > 1  # rows with times of their own say more
    keep = {relation(tag): tag for tag in sorted(reversed(index["combos"]), key=varied)}.values()
    index["combos"] = {tag: case for tag, case in index["combos"].items() if tag in keep}
    index["samples"] = {id: index["samples"][id] for id in samples}
    single = {"qwen": "cfg/", "sana": "tt_shape1/"}.get(name, "-")
    split = lambda key: key.rsplit("/", 1)[0]
    kept = {
        k: v
        for k, v in tensors.items()
        if "/" not in k or split(k) in keep or split(k) in samples and k.endswith("/samples") or k.startswith(single)
    }
    kept["noise_bank"] = kept["noise_bank"][: max(case.get("noise_draws", 2) for case in index["samples"].values())]
    write(out, name, kept, index)
    (out / f"{name}_weights.safetensors").write_bytes((full / f"{name}_weights.safetensors").read_bytes())


def main():
    full, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    trim_sampler(full, out)
    for name in ("train", "train_lora", "train_mnist"):
        trim_training(full, out, name)
    for name, samples in SAMPLES.items():
        trim_backbone(full, out, name, samples)
    sizes = {path.name: path.stat().st_size for path in sorted(out.iterdir())}
    print(*(f"{size:9d}  {name}" for name, size in sizes.items()), f"{sum(sizes.values()):9d}  of {LIMIT}", sep="\n")
    sys.exit(sum(sizes.values()) > LIMIT)


if __name__ == "__main__":
    main()
