"""What was meant: a name that is not an option or a model here, answered with the one that is.

By spelling, and by the names that other trainers use (kohya's sd-scripts and musubi-tuner, diffusers' scripts, ai-toolkit,
OneTrainer, SimpleTuner).
"""

import difflib
import os
import re
from collections.abc import Collection, Mapping

import yaml

from . import shell

CALLED: dict[str, str] = {  # another trainer's name -> the option here that takes the same value
    "learning_rate": "lr", "unet_lr": "lr", "transformer_lr": "lr",
    "network_dim": "rank", "lora_rank": "rank", "lora_r": "rank", "lora_dim": "rank",
    "network_alpha": "alpha", "lora_alpha": "alpha",
    "network_dropout": "dropout", "lora_dropout": "dropout",
    "lora_layers": "targets", "lora_target_modules": "targets", "target_modules": "targets", "layer_filter": "targets",
    "mixed_precision": "dtype", "train_dtype": "dtype", "weight_dtype": "dtype", "save_precision": "save_dtype",
    "output_dtype": "save_dtype",
    "base_model_precision": "quantize", "quantization": "quantize", "qtype": "quantize",
    "blocks_to_swap": "block_swap", "block_to_swap": "block_swap",
    "optimizer_type": "optimizer", "optim": "optimizer",
    "lr_scheduler": "schedule", "lr_scheduler_type": "schedule", "learning_rate_scheduler": "schedule",
    "lr_warmup_steps": "warmup", "learning_rate_warmup_steps": "warmup", "warmup_steps": "warmup",
    "max_train_steps": "steps", "max_steps": "steps", "num_train_steps": "steps", "train_steps": "steps", "iterations": "steps",
    "train_batch_size": "batch", "per_device_train_batch_size": "batch", "batch_size": "batch",
    "gradient_accumulation_steps": "accumulation", "gradient_accumulation": "accumulation",
    "max_grad_norm": "clip", "clip_grad_norm": "clip", "gradient_clipping": "clip",
    "adam_weight_decay": "weight_decay", "ema_decay": "weights_ema",
    "output_name": "name", "run_name": "name", "job_name": "name", "tracker_run_name": "name",
    "output_dir": "out", "workspace_dir": "out", "training_folder": "out",
    "pretrained_model_name_or_path": "source", "pretrained_transformer_path": "source", "transformer_path": "source",
    "base_model_name": "source", "name_or_path": "source", "dit": "source", "unet": "source",
    "vae": "encoders", "text_encoder": "encoders", "pretrained_vae_model_name_or_path": "encoders",
    "instance_data_dir": "data", "train_data_dir": "data", "dataset_name": "data", "folder_path": "data", "data_dir": "data",
    "image_dir": "data", "dataset_config": "dataset", "data_backend_config": "dataset",
    "trigger_word": "trigger", "caption_prefix": "trigger", "keep_tokens": "keep_tags",
    "instance_prompt": "caption", "caption_dropout_rate": "caption_dropout", "caption_dropout_probability": "caption_dropout",
    "negative_prompt": "guidance_prompt", "guidance_scale": "guidance", "cfg_scale": "guidance",
    "cache_dir_latents": "cache", "cache_directory": "cache", "vae_batch_size": "encode_batch",
    "save_every_n_steps": "save_every", "checkpointing_steps": "save_every", "save_steps": "save_every",
    "checkpoints_total_limit": "keep", "save_total_limit": "keep", "max_step_saves_to_keep": "keep",
    "sample_every_n_steps": "sample_every", "validation_steps": "sample_every", "sample_steps": "sample_every",
    "sample_prompts": "prompts", "validation_prompt": "prompts", "validation_prompts": "prompts",
    "attention_mechanism": "attention", "attn_mode": "attention", "attn_implementation": "attention",
    "torch_compile": "compile", "dynamo_backend": "compile",
    "logging_steps": "log_every", "log_with": "tracker", "report_to": "tracker",
    "max_train_epochs": "epochs", "num_train_epochs": "epochs", "num_epochs": "epochs",
    "discrete_flow_shift": "time_shift", "flow_shift": "time_shift", "shift": "time_shift",
    "timestep_sampling": "times", "weighting_scheme": "times",
    "model_family": "model", "model_name": "model", "arch": "model", "random_seed": "seed",
}  # fmt: skip

VALUES: dict[str, dict[str, str]] = {  # option here -> another trainer's value -> ours; one that is missing has no like
    "dtype": {"no": "fp32", "fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16"},
    "save_dtype": {"float": "fp32", "fp32": "fp32", "float32": "fp32", "bf16": "bf16", "bfloat16": "bf16"},
    "quantize": {
        "no_change": "none", "int8": "int8", "int8-quanto": "int8", "int8-torchao": "int8", "qint8": "int8", "fp8": "fp8",
        "fp8-quanto": "fp8", "fp8-torchao": "fp8", "float8": "fp8", "qfloat8": "fp8", "nf4": "nf4", "nf4-bnb": "nf4",
    },
    "optimizer": {"adamw": "adamw", "adam": "adamw", "adamw8bit": "adamw8bit", "adamw_8bit": "adamw8bit", "muon": "muon"},
    "schedule": {
        "cosine": "cosine", "linear": "linear", "constant": "constant", "constant_with_warmup": "constant-with-warmup",
    },
    "times": {"uniform": "beta", "sigmoid": "logit-normal", "logit_normal": "logit-normal", "none": "beta"},
    "tracker": {"tensorboard": "tensorboard", "wandb": "wandb", "none": "none"},
    "model": {}, "targets": {}, "compile": {},
}  # fmt: skip

_ALWAYS_CACHED = "images and captions are always encoded once, before training, and kept on disk (--cache)"
_BUCKETS = "images always go to buckets of about --resolution squared; --aspect limits their shapes"
_DATA = "folders with settings of their own stand in a file; expected --dataset FILE.toml"
_SHUFFLE = "tags are shuffled in a number of orders that are encoded once; expected --shuffle-tags 8, for one"
_REPEATS = "repeats stand behind a path, or in the name of a folder; expected --data path*3, or a folder 3_name"
_FLAT = "settings are flat here, one `name: value` a line, under the names of --help"
_BETAS = "both betas are one option; expected --betas 0.9,0.999"
_NORMAL = "mean and deviation are one option; expected --time-normal 0,1"
_WORKERS = "batches are read from the cache as they are needed, without workers"
_PROCESSES = "processes are accelerate's; expected accelerate launch --num_processes N -m trainer.lora ..."
_TEXT = "text encoders are never trained"
_LORA = "python -m trainer.lora trains a LoRA, and python -m trainer.full all weights"
_RESUME = "the same command, given again, goes on from its last checkpoint"
_CHECKPOINTING = "gradient checkpointing is --checkpointing here"
_ATTENTION = "attention is one option; expected --attention sdpa (PyTorch's, the default), flash, xformers, ..."

ANSWERS: dict[str, str] = {  # another trainer's name -> how that is done here
    "save_every_n_epochs": "checkpoints are counted in steps; expected --save-every N",
    "sample_every_n_epochs": "samples are counted in steps; expected --sample-every N",
    "gradient_checkpointing": _CHECKPOINTING, "activation_checkpointing": _CHECKPOINTING,
    "fp8_base": "an 8-bit base is --quantize fp8 here (or int8)",
    "fp8_scaled": "scaled 8-bit weights are --quantize fp8 here",
    "use_8bit_adam": "8-bit AdamW is --optimizer adamw8bit here",
    "use_ema": "the average of the weights is saved with --weights-ema 0.99 here",
    "adam_beta1": _BETAS, "adam_beta2": _BETAS,
    "lr_warmup_ratio": "the warm-up is counted in steps; expected --warmup N",
    "logit_mean": _NORMAL, "logit_std": _NORMAL,
    "dataset_repeats": _REPEATS, "num_repeats": _REPEATS, "repeats": _REPEATS,
    "datasets": _DATA, "subsets": _DATA, "directory": _DATA,
    "shuffle_caption": _SHUFFLE, "shuffle_tokens": _SHUFFLE, "caption_shuffle": _SHUFFLE,
    "caption_extension": "captions are .txt or .caption files beside the images",
    "enable_bucket": _BUCKETS, "min_bucket_reso": _BUCKETS, "max_bucket_reso": _BUCKETS, "bucket_reso_steps": _BUCKETS,
    "center_crop": _BUCKETS, "random_flip": "images are not flipped; add flipped ones to the data",
    "cache_latents": _ALWAYS_CACHED, "cache_latents_to_disk": _ALWAYS_CACHED, "cache_text_encoder_outputs": _ALWAYS_CACHED,
    "cache_text_encoder_outputs_to_disk": _ALWAYS_CACHED, "cache_text_embeddings": _ALWAYS_CACHED,
    "network_module": _LORA, "network_args": _LORA, "network_type": _LORA, "training_method": _LORA, "model_type": _LORA,
    "lora_type": _LORA, "use_lora": _LORA,
    "network": _FLAT, "train": _FLAT, "process": _FLAT, "job": _FLAT,
    "config_file": "settings from a file are --config FILE here",
    "resume": _RESUME, "resume_from_checkpoint": _RESUME, "resume_from": _RESUME, "save_state": _RESUME,
    "sdpa": _ATTENTION, "xformers": _ATTENTION, "flash_attn": _ATTENTION, "sdp": _ATTENTION,
    "enable_xformers_memory_efficient_attention": _ATTENTION,
    "allow_tf32": "PyTorch's own setting stays as it is",
    "save_model_as": "files are always .safetensors",
    "logging_dir": "logs go to the run's folder, <out>/<name>/logs",
    "push_to_hub": "files stay on this machine; hf upload sends them to the hub",
    "max_data_loader_n_workers": _WORKERS, "dataloader_num_workers": _WORKERS, "persistent_data_loader_workers": _WORKERS,
    "train_text_encoder": _TEXT, "network_train_unet_only": _TEXT,
    "num_processes": _PROCESSES, "num_gpus": _PROCESSES,
    "deepspeed": "large models are sharded with FSDP2: accelerate launch --use_fsdp --fsdp_version 2",
    "min_snr_gamma": "the objective has its own weights over t", "noise_offset": "the noise is plain Gaussian",
}  # fmt: skip

UNPUBLISHED = "zimageomni", "zimageedit"  # announced by github.com/Tongyi-MAI/Z-Image, as yet without weights

ESCAPED = "in double quotes a backslash begins a code: write / in its place"


def fault(error: Exception) -> str:
    """What is wrong with a YAML, TOML or JSON file, and where."""
    if isinstance(error, yaml.MarkedYAMLError) and error.problem and error.problem_mark:
        advice = f"; {ESCAPED}" if "escape" in error.problem else ""
        return f"line {error.problem_mark.line + 1}: {error.problem}{advice}"
    return " ".join(str(error).split())


def escaped(path: object) -> bool:
    """Whether it is rather a path of Windows whose backslashes were read as codes ("C:\\new" has a line break)."""
    return isinstance(path, str) and any(c < " " for c in path) and not os.path.lexists(path)


def option(asked: str, value: object, names: Collection[str], *, flag: bool) -> str:
    """One line on an unknown option `asked` with its value (None: not known); names: those of the options here.

    flag: it stood on the command line (`--name value`), not in a file (`name: value`).
    """
    spelled = asked.lstrip("-").replace("-", "_").lower()
    what = f"{asked} is not an option" if flag else f"setting {asked!r} is unknown"

    def ours(name: str, value: object = None) -> str:
        if not flag:
            return name if value is None else f"{name}: {value}"
        own = "--" + name.replace("_", "-")
        return own if value is None else shell.join(shell.option(own, str(value)))

    if spelled in names:
        return f"{what}; did you mean {ours(spelled, value)}?"
    if name := CALLED.get(spelled):
        return f"{what}; here it is called {ours(name, _translated(name, value))}"
    if answer := ANSWERS.get(spelled):
        return f"{what}; {answer}"
    near = difflib.get_close_matches(spelled, names, 3, 0.5)
    return f"{what}; " + (f"did you mean {' or '.join(map(ours, near))}?" if near else "expected one that --help lists")


def _translated(name: str, value: object) -> object:
    return VALUES[name].get(str(value).lower()) if name in VALUES else value


def model(asked: str, models: Mapping[str, str]) -> str:
    """One line on an unknown model `asked`; models: the names here, each with its published hub id ("": none)."""
    what = f"--model {asked!r} is unknown"
    if asked.endswith((".safetensors", ".gguf")) or asked.startswith((".", "/", "~", "\\")):
        return f"{what}; a file or folder goes to --source, beside --model with one of {_families(models)}"
    if _letters(asked.rpartition("/")[2]).startswith(UNPUBLISHED):
        return f"{what}; its makers have announced it, and not published its weights; expected z-image or z-image-turbo"
    name, source = _nearest(asked, models)
    if not name:
        return f"{what}; expected one of {_families(models)}"
    return f"{what}; did you mean --model {name}{f' (with --source {source})' if source else ''}?"


def _families(models: Collection[str]) -> str:
    """The names that are not another's with something behind it: all of them are more than a line."""
    return ", ".join(n for n in models if not any(n != own and n.startswith(own) for own in models)) + " (--help names all)"


def _letters(text: str) -> str:
    return re.sub("[^a-z0-9]", "", text.lower())


def _nearest(asked: str, models: Mapping[str, str]) -> tuple[str, str]:
    """The model that is meant, and the hub id where it is another than the published one; "" for neither.

    Case, separators and the owner do not count: first the same letters as a name or hub id, then either with something
    behind it (a version), then the closest spelling.
    """
    owner, _, bare = asked.rpartition("/")
    letters = _letters(bare)
    first = list(models.items())[::-1]  # of several with one hub id the first wins
    known = {_letters(hub_id.rpartition("/")[2]): name for name, hub_id in first if hub_id}
    known |= {_letters(name): name for name in models}
    if name := known.get(letters):
        return name, asked if owner and models[name] and asked.lower() != models[name].lower() else ""
    if longest := max((own for own in known if letters.startswith(own)), key=len, default=""):
        name = known[longest]
        return name, asked if owner else _version(bare, models[name], name)
    close = difflib.get_close_matches(letters, [_letters(name) for name in models], 1, 0.6)
    return next((name for name in models if [_letters(name)] == close), ""), asked if owner and close else ""


def _version(bare: str, hub_id: str, name: str) -> str:
    """The hub id of a version of a model, such as qwen-image-2512's from Qwen/Qwen-Image; "" where that cannot be guessed."""
    owner, _, published = hub_id.rpartition("/")
    if not owner or not _letters(published).startswith(_letters(name)):
        return ""
    i = j = 0  # as far as the two agree, the published spelling; then what was asked for
    while i < len(bare) and j < len(published):
        if not bare[i].isalnum():
            i += 1
        elif not published[j].isalnum():
            j += 1
        elif bare[i].lower() == published[j].lower():
            i, j = i + 1, j + 1
        else:
            break
    return f"{owner}/{published[:j]}{bare[i:].replace('_', '-')}"
