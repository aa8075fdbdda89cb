"""Converts LoRA and IA3 of a T5, with their trained leaves, from and to PEFT adapters.

PEFT's A is [r, in] and its B [out, r] in y = W x + scale * B A x; ours are their transposes.
"""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np
from etils import epath

from prompt_tuning.checkpoint.formats import peft
from prompt_tuning.errors import CheckpointError
from prompt_tuning.methods import IA3, LoRA
from prompt_tuning.t5.huggingface import their_name
from prompt_tuning.transformer.sites import BLOCKS

_PREFIX = "base_model.model."
_LAYER = re.compile(r"base_model\.model\.(encoder|decoder)\.block\.(\d{1,4})\.")
_ATTENTION = ("query", "key", "value", "out")
_MLP = ("wi", "wi_0", "wi_1", "wo")
_LARGEST = float(np.finfo(np.float32).max)
_LEAF = re.compile(
    r"(encoder|decoder)/layers_\d{1,4}/(attention|self_attention|encoder_decoder_attention|mlp)/"
    r"(lora_\w+/[ab]|ia3_(key|value|wo)/scale)"
)
_A, _B, _SCALE = "lora_A.weight", "lora_B.weight", "ia3_l"

# Fields that change the computed function or the backbone's weights in ways we do not have.
_UNSUPPORTED = (
    "use_dora",
    "use_qalora",
    "lora_bias",
    "rank_pattern",
    "alpha_pattern",
    "layer_replication",
    "alora_invocation_tokens",
    "trainable_token_indices",
    "target_parameters",
    "modules_to_save",
    "fan_in_fan_out",
)
_BACKBONE_KEPT = (None, True, False, "gaussian", "orthogonal", "eva")


def load(path: epath.PathLike) -> tuple[LoRA | IA3, dict[str, np.ndarray]]:
    """Reads the method of a LoRA or IA3 adapter, and its trained leaves by path, float32.

    LoRA's alpha is set so that the scale equals PEFT's, also under rank-stabilised scaling.

    Args:
      path: folder of the adapter.

    Raises:
      CheckpointError: as `peft.read`, or if the method cannot express the adapter.
    """
    adapter = peft.read(path, (peft.LORA, peft.IA3))
    for field in _UNSUPPORTED:
        if adapter.config.get(field):
            raise adapter.refused(field, "not supported here; train without it")
    return _lora(adapter) if adapter.config["peft_type"] == peft.LORA else _ia3(adapter)


def save(path: epath.PathLike, method: LoRA | IA3, leaves: Mapping[str, np.ndarray]) -> None:
    """Writes trained leaves of LoRA or IA3 as an adapter folder that PEFT loads.

    Raises:
      CheckpointError: if the folder exists, or the leaves do not belong to the method.
    """
    if isinstance(method, IA3):
        return _save_ia3(path, leaves)
    modules = _modules_of(leaves)
    if any(leaves[f"{ours}/a"].shape[1] != method.rank for ours in modules.values()):
        raise CheckpointError(f"{path}: the rank of the leaves must be LORA_RANK = {method.rank}")
    arrays = {}
    for module, ours in modules.items():
        theirs = _theirs(module)
        arrays[f"{theirs}.{_A}"] = leaves[f"{ours}/a"].T
        arrays[f"{theirs}.{_B}"] = leaves[f"{ours}/b"].T
    config = {
        "peft_type": peft.LORA,
        "r": method.rank,
        "lora_alpha": method.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted({_theirs(module).rpartition(".")[2] for module in modules}),
        "layers_to_transform": None if method.layers is None else list(method.layers),
        # By default PEFT would count the sublayers of a T5.
        "layers_pattern": None if method.layers is None else ["block"],
    }
    peft.write(path, config, arrays)


def _save_ia3(path: epath.PathLike, leaves: Mapping[str, np.ndarray]) -> None:
    arrays = {}
    for name, scale in leaves.items():
        module = _scaled(name)
        shape = (1, -1) if module.endswith("/wo") else (-1, 1)
        arrays[f"{_theirs(module)}.{_SCALE}"] = scale.reshape(shape)
    targets = {"target_modules": ["k", "v", "wo"], "feedforward_modules": ["wo"]}
    peft.write(path, {"peft_type": peft.IA3, **targets}, arrays)


def lora_of(
    path: object, leaves: Mapping[str, np.ndarray], alpha: float, in_every_layer: bool = False
) -> LoRA:
    """The LoRA with these trained leaves, which do not contain its `alpha`.

    Its layers are those of the leaves, or None if they are known to be `in_every_layer` of the
    backbone, whose depth the leaves do not tell.

    Raises:
      CheckpointError: if the leaves are not those of one LoRA.
    """
    modules = _modules_of(_all_known(path, leaves))
    if len(modules) * 2 != len(leaves) or not modules:
        raise CheckpointError(
            f"{path}: contains leaves other than LoRA's; only LoRA's can be written"
        )
    ranks = {leaves[f"{ours}/a"].shape[1] for ours in modules.values()}
    missing = _missing(modules)
    if missing or len(ranks) != 1:
        raise CheckpointError(f"{path}: not a whole LoRA of one rank; {missing or ranks}")
    return LoRA(ranks.pop(), alpha, _projections(modules), _layers(modules, not in_every_layer))


def ia3_of(path: object, leaves: Mapping[str, np.ndarray]) -> IA3:
    """The IA3 with these trained leaves.

    Raises:
      CheckpointError: if the leaves are not those of IA3.
    """
    modules = [_scaled(name) for name in _all_known(path, leaves)]
    if set(_projections(modules)) != {"key", "value", "wo"} or _missing(modules):
        raise CheckpointError(f"{path}: not a whole IA3; {_missing(modules)}")
    return IA3()


def _all_known(path: object, leaves: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
    for name, leaf in leaves.items():
        if not _LEAF.fullmatch(name) or leaf.ndim != (1 if name.endswith("/scale") else 2):
            raise CheckpointError(
                f"{path}: {name} {list(leaf.shape)} is not a leaf of LoRA or IA3, the only ones "
                "that PEFT has"
            )
    return leaves


def _scaled(name: str) -> str:
    """Path of the module that a leaf of IA3 scales."""
    return name.removesuffix("/scale").replace("/ia3_", "/")


def _lora(adapter: peft.Adapter) -> tuple[LoRA, dict[str, np.ndarray]]:
    config, rank = adapter.config, adapter.count("r")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, (int, float)) or not 0 < abs(alpha) <= _LARGEST:
        raise adapter.refused("lora_alpha", "must be a number other than 0")
    if config.get("bias") not in (None, "none"):
        raise adapter.refused("bias", "not supported here; train without it")
    if config.get("init_lora_weights") not in _BACKBONE_KEPT:
        raise adapter.refused(
            "init_lora_weights",
            "changes the backbone's weights; save with path_initial_model_for_weight_conversion",
        )
    modules = _modules_in(adapter, (_A, _B))
    leaves = {}
    for module, theirs in modules.items():
        ours = _named(module, "lora")
        leaves[f"{ours}/a"] = adapter.tensor(f"{theirs}.{_A}", (rank, None), "r").T
        leaves[f"{ours}/b"] = adapter.tensor(f"{theirs}.{_B}", (None, rank), "r").T
    stated = config.get("layers_to_transform") is not None
    scale = math.sqrt(rank) if config.get("use_rslora") else 1.0
    method = LoRA(rank, float(alpha) * scale, _projections(modules), _layers(modules, stated))
    return method, {path: np.ascontiguousarray(leaf) for path, leaf in leaves.items()}


def _ia3(adapter: peft.Adapter) -> tuple[IA3, dict[str, np.ndarray]]:
    modules = _modules_in(adapter, (_SCALE,))
    if set(_projections(modules)) != {"key", "value", "wo"} or _layers(modules) is not None:
        raise adapter.refused("target_modules", "must be k, v and wo in every layer")
    leaves = {}
    for module, theirs in modules.items():
        # PEFT scales the input of a feed-forward module, and the output of others.
        shape = (1, None) if module.endswith("/wo") else (None, 1)
        scale = adapter.tensor(f"{theirs}.{_SCALE}", shape, 'feedforward_modules ["wo"]')
        leaves[f"{_named(module, 'ia3')}/scale"] = scale.reshape(-1)
    return IA3(), leaves


def _modules_in(adapter: peft.Adapter, suffixes: Iterable[str]) -> dict[str, str]:
    """PEFT's names of the adapted modules, by our paths.

    Raises:
      CheckpointError: if a tensor belongs to no such module, or the stacks and layers differ.
    """
    matches = map(_LAYER.match, adapter.tensors)
    layers = {(match[1], int(match[2])) for match in matches if match}
    known = {
        _theirs(module): module for stack, layer in layers for module in _of_layer(stack, layer)
    }
    modules = {}
    for name in adapter.tensors:
        theirs = next((name.removesuffix(f".{x}") for x in suffixes if name.endswith(f".{x}")), "")
        if theirs not in known:
            raise CheckpointError(
                f"{adapter.path / peft.WEIGHTS}: {name} (target_modules, {peft.CONFIG}) belongs to "
                "neither attention nor feed-forward of T5; not supported here"
            )
        modules[known[theirs]] = theirs
    if not modules:
        raise CheckpointError(f"{adapter.path / peft.WEIGHTS}: contains no tensor")
    if missing := _missing(modules):
        raise adapter.refused("target_modules", f"{missing}; must be the same in both stacks")
    return modules


def _modules_of(leaves: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Paths of LoRA's modules among trained leaves, by the path of the module each adapts."""
    paths = [path.removesuffix("/a") for path in leaves if "/lora_" in path and path[-2:] == "/a"]
    return {path.replace("/lora_", "/"): path for path in paths if f"{path}/b" in leaves}


def _missing(modules: Iterable[str]) -> str:
    """What is missing for the same projections in every block; "" if nothing is."""
    places = {tuple(module.split("/")) for module in modules}
    chosen = {projection for *_, projection in places}
    layers = {_number(layer) for _, layer, *_ in places}
    for stack in BLOCKS:
        of_stack = {_number(layer) for each, layer, *_ in places if each == stack}
        if not of_stack:
            return f"nothing in the {stack}"
        # One stack may be shorter than the other.
        for layer in sorted(layer for layer in layers if layer <= max(of_stack)):
            for module in _of_layer(stack, layer):
                if module.rpartition("/")[2] in chosen and tuple(module.split("/")) not in places:
                    return f"no {_theirs(module).removeprefix(_PREFIX)}"
    return ""


def _layers(modules: Iterable[str], stated: bool = False) -> tuple[int, ...] | None:
    """Layers of both stacks; None for all, unless the adapter states (`stated`) a selection."""
    layers = sorted({_number(module.split("/")[1]) for module in modules})
    return None if layers == list(range(len(layers))) and not stated else tuple(layers)


def _projections(modules: Iterable[str]) -> tuple[str, ...]:
    chosen = {module.rpartition("/")[2] for module in modules}
    return tuple(name for name in (*_ATTENTION, *_MLP) if name in chosen)


def _of_layer(stack: str, layer: int) -> list[str]:
    """Paths of all projections that a layer can have."""
    return [
        f"{stack}/layers_{layer}/{block}/{name}"
        for block in BLOCKS[stack]
        for name in (_MLP if block == "mlp" else _ATTENTION)
    ]


def _theirs(module: str) -> str:
    return _PREFIX + their_name(f"{module}/kernel").removesuffix(".weight")


def _named(module: str, method: str) -> str:
    block, _, projection = module.rpartition("/")
    return f"{block}/{method}_{projection}"


def _number(layer: str) -> int:
    return int(layer.removeprefix("layers_"))
