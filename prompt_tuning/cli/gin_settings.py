"""Checks what gin parsed before a run starts: what is missing, misspelt or of a wrong kind."""

import collections.abc
import difflib
import inspect
import re
import types
import typing
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import gin
from gin import config as gin_config

from prompt_tuning.errors import UserError, whole_number
from prompt_tuning.runtime.connectivity import no_storage

# T5X's macros: those that have another name here, and hints for those without an equivalent.
_NAMES = {"TRAIN_STEPS_RELATIVE": "TRAIN_STEPS"}
_HINTS = {
    "CHECKPOINT_PATH": "the backbone is INITIAL_CHECKPOINT_PATH, the trained prompt PROMPT_FILE",
    "DROPOUT_RATE": "dropout applies in training only; leave this setting out",
    "EVALUATOR_NUM_EXAMPLES": "EVAL_EXAMPLES is the number of examples that are measured",
}
# Macros that a run would leave out without what is said here.
_ONLY_WITH = {
    "PROMPT_FILE": "PROMPT_INIT does not read it; give --gin.PROMPT_INIT='@FromFile()' to start "
    "from it, or leave it out"
}
_FILES_OF_ONES_OWN = ("TRAIN_FILE", "VALIDATION_FILE", "TEST_FILE", "INPUT_FILE")
# Macros that a run reads only if one of some others is set (NAME=TEXT: to this text), or a
# configurable is used.
_READ_WITH: Mapping[str, Sequence[str]] = {
    "CLASS_LABELS": (*_FILES_OF_ONES_OWN, "ClassLabels"),
    "TEXT_FIELD": _FILES_OF_ONES_OWN,
    "LABEL_FIELD": _FILES_OF_ONES_OWN,
    "METRICS": _FILES_OF_ONES_OWN,
    "QUOTED_CELLS": (*_FILES_OF_ONES_OWN, "FILE_TASKS"),
    "DATA_DIR": ("FILE_TASKS",),
    "BENCHMARKS_DIR": ("MIXTURE_OR_TASK_NAME",),
    "FEW_SHOT_SEED": ("FEW_SHOT",),
    "BALANCED_CLASSES": ("Fit",),
    "BUCKET_BOUNDS": ("BATCHING=bucketed",),
    "DEMONSTRATIONS_SEED": ("DEMONSTRATIONS",),
    "MIXTURE_OR_TASK_MODULE": ("MIXTURE_OR_TASK_NAME",),
    "USE_CACHED_TASKS": ("MIXTURE_OR_TASK_NAME",),
    "PRETRAINED_STEPS": ("adafactor",),
}
# Macros that are whole numbers, and the least of each, which a dry run checks too.
_LEAST = {"BATCH_SIZE": 1, "EVAL_BATCH_SIZE": 1, "EVAL_EXAMPLES": 1, "RANDOM_SEED": 0}
_NAMED_BY_SCOPE = ("gin.macro", "gin.constant")  # what gin calls a scope is their name
_HOW_TO_SET = "give --gin.{0}=VALUE, or a --gin_file that sets it"
# Macros that a kind of gin file sets.
_FILES = {
    "MODEL": "give a --gin_file=models/NAME.gin",
    "METHOD": "give a --gin_file=methods/NAME.gin",
}


def with_own_name(binding: str) -> str:
    """Renames a macro of T5X that has another name here, in a binding."""
    name, equals, value = binding.partition("=")
    return f"{_NAMES.get(name.strip(), name)}{equals}{value}"


def check(function: Callable, names: Sequence[str], unneeded: Collection[str] = ()) -> None:
    """Checks what a call of a configurable function would use.

    Args:
      function: Configurable function.
      names: Macros and parameters, perhaps in a scope, that the command line sets.
      unneeded: Arguments of `function` that need not be set.

    Raises:
      UserError: Naming the macro or parameter that is wrong.
    """
    _check_scopes(names)
    unknown = _unknown([name for name in names if name.isidentifier()])
    # A macro that looks misspelt explains why another is missing, any other does not.
    if unknown and (unknown[0].close or unknown[0].name in _HINTS):
        raise UserError(str(unknown[0]))
    for name, least in _LEAST.items():
        value = gin.get_bindings(f"{name}/gin.macro", resolve_references=False).get("value")
        if type(value) is int:
            whole_number(name, value, least)
    used: dict[str, Any] = {}
    configurables = set()
    for setting in _settings_of(function, function, unneeded):
        setting.check()
        used[setting.name] = setting.value
        if isinstance(setting.value, gin_config.ConfigurableReference):
            configurables.add(setting.value.configurable.wrapped.__name__)
    if unknown:
        raise UserError(str(unknown[0]))
    warmup, steps = used.get("WARMUP_STEPS", 0), used.get("TRAIN_STEPS", 1)
    if "warmup_cosine_decay_schedule" in configurables and warmup >= steps:  # optax names neither
        raise UserError(f"WARMUP_STEPS = {warmup}: must be below TRAIN_STEPS = {steps}")
    for name in names:
        _check_is_read(name, used, configurables)
    for name in _ONLY_WITH.keys() & {*names} - used.keys():
        raise UserError(f"gin: {name}: {_ONLY_WITH[name]}")


def _check_is_read(name: str, used: Mapping[str, Any], configurables: Collection[str]) -> None:
    """Raises UserError for a setting of the command line that the run leaves out."""
    needed = _READ_WITH.get(name, ())
    macros = [other.partition("=")[0] for other in needed]
    macros = [macro for macro in macros if macro.isupper()]
    if not needed or (macros and not used.keys() & {*macros}):  # which this command does not have
        return
    of_files = set(_FILES_OF_ONES_OWN) <= {*needed}
    if of_files and not used.get("MIXTURE_OR_TASK_NAME"):
        return  # a run without data says so itself
    if "Fit" not in configurables:  # no prompt is initialised
        configurables = {*configurables} - {"ClassLabels"}
    if not any(_is_met(other, used) or other in configurables for other in needed):
        known = [other.replace("=", " = ") for other in needed if other.partition("=")[0] in used]
        how = {"Fit": "in training", "adafactor": "by the optimizer adafactor"}.get(
            needed[0], f"with {' or '.join(known)}"
        )
        raise UserError(f"gin: {name}: is read only {how}; leave it out")


def _is_met(needed: str, used: Mapping[str, Any]) -> bool:
    """Whether a macro is set; for "NAME=TEXT", to this text."""
    name, equals, text = needed.partition("=")
    return used.get(name) == text if equals else bool(used.get(name))


def _check_scopes(names: Sequence[str]) -> None:
    """Raises UserError for a parameter in a scope that no reference has; gin would let it pass."""
    used = set(re.findall(r"@([\w/]+)/[\w.]+", gin.config_str()))
    for name in names:
        scope = name.rpartition("/")[0]
        if scope and scope not in used:
            known = ", ".join(sorted(used)) or "none"
            raise UserError(f"gin: {name}: there is no scope {scope}; available: {known}")


def warn_of_scopes(texts: Sequence[str]) -> None:
    """Warns of a scope of a gin file that no reference has, but one of a similar name.

    It may still be meant: files set tasks that another run names in its references.

    Args:
      texts: Gin files and bindings. A run may replace references in them, such as to leave out
        tasks.
    """
    references = re.findall(r"@([\w/]+)/[\w.]+", "\n".join(texts))
    used = {part for scope in references for part in scope.split("/")}
    bound = {scope for scope, selector in gin_config._CONFIG if selector not in _NAMED_BY_SCOPE}
    for part in sorted({part for scope in bound for part in scope.split("/") if part} - used):
        if close := difflib.get_close_matches(part, used, n=1, cutoff=0.8):
            warnings.warn(
                f"gin: no reference has the scope {part}, whose settings have no effect; did you "
                f"mean {close[0]}?",
                stacklevel=2,
            )


def warn_of_macros(own: Sequence[str], texts: Sequence[str]) -> None:
    """Warns of a macro of a user's gin file that nothing refers to, but one of a similar name.

    Args:
      own: The user's gin files.
      texts: All gin files, and bindings.
    """
    used = set(re.findall(r"%(\w+)", "\n".join(texts)))
    bound = {name for text in own for name in re.findall(r"^([A-Za-z_]\w*) *=", text, re.M)}
    for name in sorted(bound - used):
        if close := difflib.get_close_matches(name.upper(), used, n=1, cutoff=0.8):
            warnings.warn(
                f"gin: nothing reads {name}, which has no effect; did you mean {close[0]}?",
                stacklevel=2,
            )


class _Unknown(NamedTuple):
    """A macro on the command line that nothing refers to, and those of a similar name."""

    name: str
    close: Sequence[str]

    def __str__(self) -> str:
        hint = _HINTS.get(self.name, "no gin file here uses it")
        if self.close and self.name not in _HINTS:
            hint = f"did you mean {', '.join(self.close)}?"
        return f"gin: there is no setting {self.name}; {hint}"


def _unknown(names: Sequence[str]) -> list[_Unknown]:
    """Returns the `names` that nothing refers to, first those with a hint."""
    used = set(re.findall(r"%(\w+)", gin.config_str()))
    unknown = [
        _Unknown(name, difflib.get_close_matches(name.upper(), used, n=3))
        for name in names
        if name not in used
    ]
    return sorted(unknown, key=lambda macro: not (macro.close or macro.name in _HINTS))


class _Setting(NamedTuple):
    """A value that the run uses.

    Attributes:
      name: Name of the macro, or CONFIGURABLE.PARAMETER.
      value: Parsed value, perhaps a reference.
      kind: Annotation of the parameter that takes it.
    """

    name: str
    value: Any
    kind: Any

    def check(self) -> None:
        """Raises UserError for a value of a wrong kind, or a path in unreachable storage."""
        value = self.value
        if isinstance(value, gin_config.ConfigurableReference):
            function = value.configurable.wrapped
            if inspect.isclass(function) and not value.evaluate:
                raise UserError(f"{self.name} = {value}: write {value}()")
            if typing.get_origin(self.kind) is collections.abc.Callable and value.evaluate:
                raise UserError(f"{self.name} = {value}: write {str(value)[:-2]}, without ()")
        elif not _fits(value, self.kind):
            hint = _as_written(self.name, value, self.kind)
            raise UserError(f"{self.name} = {value!r}: must be {_described(self.kind)}{hint}")
        elif isinstance(value, str) and value.startswith("gs://"):
            _check_storage_answers(f"{self.name} = {value!r}")


def _settings_of(
    key: Any, function: Callable, supplied: Collection[str] | None = ()
) -> Iterator[_Setting]:
    """Yields the settings that a call of a configurable uses, with those that they refer to.

    Args:
      key: The configurable, as gin looks it up.
      function: The same as a function, for its signature.
      supplied: Arguments that the caller supplies; None if the caller is not known.

    Raises:
      UserError: For a setting without a value.
    """
    try:
        parameters = inspect.signature(function).parameters
    except ValueError:  # not written in Python
        return
    bound = gin.get_bindings(key, resolve_references=False)
    scopes = key.split("/")[:-1] if isinstance(key, str) else []
    for name, parameter in parameters.items():
        setting = f"{function.__name__}.{name}"
        if supplied is not None and name in supplied:
            continue
        if name in bound:
            yield from _followed(setting, bound[name], parameter.annotation, scopes)
        elif supplied is not None and _is_needed(parameter):
            raise UserError(f"{setting} is not set: {_HOW_TO_SET.format(setting)}")


def _is_needed(parameter: inspect.Parameter) -> bool:
    is_variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not is_variadic


def _followed(name: str, value: Any, kind: Any, scopes: Sequence[str] = ()) -> Iterator[_Setting]:
    """Yields a setting under the name of its macro, and the settings that it refers to.

    Args:
      name: Name of the setting, unless its value is a macro.
      value: Parsed value.
      kind: Annotation of the parameter that takes it.
      scopes: Scopes of the use; they apply to a reference that has no scopes of its own.
    """
    if not isinstance(value, gin_config.ConfigurableReference):
        yield _Setting(name, value, kind)
        for reference in gin_config.iterate_references(value):
            yield from _followed(name, reference, Any, scopes)
    elif value.configurable.wrapped is gin_config.macro:
        macro = "/".join(value.scopes)
        bound = gin.get_bindings(f"{macro}/gin.macro", resolve_references=False)
        if "value" not in bound:
            how = _FILES.get(macro, _HOW_TO_SET.format(macro))
            raise UserError(f"{macro} is not set: {how}")
        yield from _followed(macro, bound["value"], kind)
    elif value.scoped_selector == "gin.REQUIRED/gin.constant":
        raise UserError(f"{name} is not set: {_HOW_TO_SET.format(name)}")
    else:
        yield _Setting(name, value, kind)
        function = value.configurable
        key = "/".join([*(value.scopes or scopes), function.selector])
        yield from _settings_of(key, function.wrapped, () if value.evaluate else None)


def _fits(value: Any, kind: Any) -> bool:
    """Returns whether a literal can be an argument annotated as `kind`."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if isinstance(value, gin_config.ConfigurableReference) or isinstance(kind, str) or kind is Any:
        return True
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, option) for option in inner)
    if kind in (int, float):
        return type(value) is int or type(value) is kind
    if origin is tuple and inner[-1] is not Ellipsis:
        fits = isinstance(value, (list, tuple)) and len(value) == len(inner)
        return fits and all(map(_fits, value, inner))
    if origin in (collections.abc.Sequence, tuple, list):
        return isinstance(value, (list, tuple)) and all(_fits(item, inner[0]) for item in value)
    if origin in (collections.abc.Mapping, dict):
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if origin is collections.abc.Callable or getattr(kind, "_is_protocol", False):
        return False
    return not inspect.isclass(kind) or kind is inspect.Parameter.empty or isinstance(value, kind)


def _as_written(name: str, value: Any, kind: Any) -> str:
    """How to write a value as the text or list that it seems to be meant as; "" if it is none."""
    if isinstance(value, str) and value[:1] in ("[", "(", "{"):
        return "; words in a list need quotes, and brackets an end, as in \"['a', 'b']\""
    texts = list(map(str, value)) if isinstance(value, list | tuple) else str(value)
    if value is None or isinstance(value, str) or not _fits(texts, kind):
        return ""
    return f'; as text it is --gin.{name}="{texts!r}"'


def _described(kind: Any) -> str:
    known = {int: "a whole number", float: "a number", str: "a string", bool: "True or False"}
    if typing.get_origin(kind) is collections.abc.Callable:
        return "a reference to a function (@NAME)"
    if inspect.isclass(kind) and kind not in known:
        return f"a reference (@NAME()) to {kind.__name__}"
    return known.get(kind) or "of type " + re.sub(r"\b(\w+\.)+", "", inspect.formatannotation(kind))


def _check_storage_answers(what: str) -> None:
    """Raises UserError if Google Cloud Storage, whose clients retry for long, is unreachable."""
    if reason := no_storage():
        raise UserError(
            f"{what}: Google Cloud Storage cannot be reached ({reason}); give a local path, or "
            "check the network"
        )
