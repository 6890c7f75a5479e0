"""Checks of a composed configuration that need no file and no model: what each value may be, and what it becomes."""

import math
import os
import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from omegaconf import DictConfig, OmegaConf

from emharness.config import BASE, REPLICA, STEP, Config
from emharness.errors import UserError
from emharness.question_forms import FORMS
from emharness.ranges import check_ranges, refuse_unknown
from emharness.steering.request.modes import MODES
from emharness.steering.request.spec import Edit

RECIPES = ("model_diff", "mean_diff", "lora_b")
PAIRED = ("model_diff", "lora_b")  # of these: read answers of both models, and their two sides are of the same texts
TRACKERS = ("offline", "online", "none")
UNITS = ("absolute", "raw", "residual")
PLANS = ("run", "only")
POSITIONS = ("all", "prompt", "generated", "response")
AUTOCASTS = ("bfloat16",)
DTYPES = ("auto", "bfloat16", "float16", "float32")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
_TAKEN = re.compile(rf"{BASE}|random-\d+|.*({STEP}|{REPLICA})\d+")  # names that mean something else


def parse_config(cfg: DictConfig) -> Config:
    """The composed config as an object, every value that needs no file or model checked. Raises UserError."""
    refuse_unknown(cfg, Config)
    config: Config = OmegaConf.to_object(cfg)  # type: ignore[assignment]
    check_ranges(config)
    file_name("model.name", config.model.name)
    file_name("base.name", config.base.name)
    if set(config.wandb.project) & set("/\\#?%:") or not 0 < len(config.wandb.project) <= 128:
        raise UserError(f"wandb.project={config.wandb.project}: W&B takes up to 128 characters, none of / \\ # ? % :")
    check_choice("base.engine.dtype", config.base.engine.dtype, DTYPES)
    if config.train.autocast is not None:
        check_choice("train.autocast", config.train.autocast, AUTOCASTS)
    check_choice("vector.recipe", config.vector.recipe, RECIPES)
    config.tracker = tracker_mode(config.tracker)
    check_choice("steer.unit", config.steer.unit, UNITS)
    check_choice("steer.mode", config.steer.mode, tuple(MODES))
    check_choice("steer.positions", config.steer.positions, POSITIONS)
    if not MODES[config.steer.mode].is_length:
        config.steer.unit = "absolute"  # a plain factor
    config.steer.layers = parse_layers(config.steer.layers)
    check_choice("plan", config.plan, PLANS)
    for part in config.experiment.parts.values():
        for key in ("vectors", "targets", "strengths"):
            own = getattr(config.experiment, key)
            own += [item for item in part.get(key, []) if item not in own]
    if config.steer.strength is None:
        config.steer.strength = config.experiment.strengths
    config.steer.strength = parse_strengths(config.steer.strength)
    config.eval.questions = config.eval.questions or config.base.questions
    config.sweep.questions = config.sweep.questions or config.base.sweep_questions
    model = config.model.name
    config.eval.forms = parse_names(config.eval.forms or None, config.experiment.forms, "eval.forms", model)
    for form in config.eval.forms:
        check_choice("eval.forms", form, FORMS)
    config.vectors = parse_names(config.vectors, config.experiment.vectors, "vectors", model)
    config.targets = parse_names(config.targets, config.experiment.targets, "targets", model, {config.base.name: BASE})
    if config.steer.layers is not None and config.layer != "sweep":
        raise UserError(f"steer.layers={config.steer.layers}, layer={config.layer}: give one of them")
    if (gate := config.steer.gate.vector) is not None and gate not in config.vectors:
        raise UserError(f"steer.gate.vector={gate}: must be among the run's vectors, {', '.join(config.vectors)}")
    if config.layer != "sweep" and (isinstance(config.layer, bool) or not isinstance(config.layer, int)):
        raise UserError(f"layer={config.layer}: give 'sweep' or the number of a decoder block, counted from 0")
    if config.base.sampling.temperature == 0:
        keys = ("samples", "domain_samples", "control_samples", "form_samples")
        samples = {f"eval.{key}": getattr(config.eval, key) for key in keys}
        for key, value in {**samples, "sweep.samples": config.sweep.samples}.items():
            if value is not None and value > 1:
                raise UserError(
                    f"base.sampling.temperature=0: all {value} samples of {key}={value} would be equal; set {key}=1, "
                    "or a temperature above 0"
                )
    return config


_WANDB_MODES = {"online": "online", "run": "online", "shared": "online", "offline": "offline", "dryrun": "offline"}
_WANDB_MODES |= {"disabled": "none"}


def tracker_mode(tracker: str | None) -> str:
    """offline, online or none: as given, else what WANDB_MODE says, else offline."""
    if tracker is not None:
        check_choice("tracker", tracker, TRACKERS)
        return tracker
    mode = os.environ.get("WANDB_MODE") or "offline"
    check_choice("WANDB_MODE", mode, tuple(_WANDB_MODES))
    return _WANDB_MODES[mode]


def file_name(key: str, name: str) -> None:
    """UserError for a name that cannot stand in file, W&B and artifact names, or that means something else here."""
    if not _NAME.fullmatch(name) or ".." in name:
        raise UserError(
            f"{key}={name}: must be up to 100 letters, digits and . _ - (it goes into file and W&B artifact names)"
        )
    if _TAKEN.fullmatch(name):
        raise UserError(f"{key}={name}: this name means something else here (the base, a random direction, a replica)")


def parse_strengths(value: Any, key: str = "steer.strength") -> list[float]:
    """A number or a list of distinct numbers as finite floats, in the order given."""
    values = value if isinstance(value, list) else [value]
    for item in values:
        if isinstance(item, bool) or not isinstance(item, int | float) or not math.isfinite(item):
            raise UserError(f"{key}={item}: must be a finite number or a list of finite numbers")
    if not values:
        raise UserError(f"{key}=[]: must be a finite number or a list of finite numbers")
    floats = [float(item) for item in values]
    if repeated := [item for item in floats if floats.count(item) > 1]:
        raise UserError(f"{key}={value}: {repeated[0]:g} occurs twice; give each strength once")
    return floats


def parse_names(
    value: Any, default: list[str], key: str, model: str, aliases: Mapping[str, str] = MappingProxyType({})
) -> list[str]:
    """A name or a list of names, aliases replaced; `default` where none is given. UserError for none or repeats.

    "model" stands for the organism that model= chooses, also where more is added to it, as in model+kl and model-good.
    medical+mix{5,20} stands for medical+mix5 and medical+mix20.
    """
    given = default if value is None else value
    listed = re.split(r",(?![^{]*\})", given) if isinstance(given, str) else given
    if not isinstance(listed, list) or not all(isinstance(item, str) and item for item in listed):
        raise UserError(f"{key}={given}: must be a name or a list of names")
    if not listed and value is not None:
        raise UserError(f"{key}=[]: give at least one name, or leave it out for the experiment's own list")
    listed = [name for item in listed for name in _expand_braces(item)]
    listed = [aliases.get(item) or re.sub(r"^model(?=$|[+-])", model, item) for item in listed]
    if repeated := [item for item in listed if listed.count(item) > 1]:
        raise UserError(f"{key}={given}: {repeated[0]} occurs twice; give each name once")
    return listed


def _expand_braces(name: str) -> list[str]:
    """a{1,2}b as a1b and a2b; a name without braces as it is."""
    found = re.fullmatch(r"(.*?)\{([^{}]*)\}(.*)", name)
    if found is None:
        return [name]
    before, options, after = found.groups()
    return [whole for option in options.split(",") for whole in _expand_braces(f"{before}{option.strip()}{after}")]


def parse_layers(value: Any) -> tuple[int, ...] | str | None:
    """Layers that are edited together: a list, or first-last. UserError for anything else."""
    if value is None:
        return None
    try:
        return Edit(vector="", strength=1.0, layers=value).layers
    except ValueError:
        raise UserError(f"steer.layers={value}: give a list of layers, each once, or first-last as in 8-20") from None


def check_layer(layer: Any, n_layers: int, base: str) -> None:
    if layer != "sweep" and not 0 <= layer < n_layers:
        raise UserError(f"layer={layer}: {base} has layers 0 to {n_layers - 1}; give one of them or 'sweep'")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"{key}={value}: must be one of {', '.join(allowed)}")
