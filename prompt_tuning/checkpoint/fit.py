"""Whether a checkpoint's arrays are the ones that a model wants; for every format."""

from collections.abc import Callable, Mapping, Sequence

from prompt_tuning.errors import CheckpointError

Shape = Sequence[int]
_SHOWN = 8


def check_fits(
    available: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    *,
    path: object,
    ignore: Callable[[str], bool] = lambda name: False,
) -> None:
    """Checks that a checkpoint has each wanted leaf in its shape, and no other leaf.

    Args:
      available: shapes of the checkpoint's parameters, by flat name (`encoder/.../kernel`, without
        a format's own prefix such as T5X's `target/`).
      wanted: shapes of the model's parameters, by the same names.
      path: where the checkpoint is; for the message only.
      ignore: says of an unexpected name that it may be there.

    Raises:
      CheckpointError: names all missing, unexpected and mis-shaped leaves, sorted, at most eight of
        each kind.
    """
    shared = wanted.keys() & available.keys()
    misshaped = [name for name in shared if tuple(available[name]) != tuple(wanted[name])]
    problems = {
        "missing": list(wanted.keys() - available.keys()),
        "unexpected": [name for name in available.keys() - wanted.keys() if not ignore(name)],
        "mis-shaped": [
            f"{name} {tuple(available[name])}, wanted {tuple(wanted[name])}" for name in misshaped
        ],
    }
    found = [f"{kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if found:
        raise CheckpointError(
            f"{path}: the checkpoint does not fit the model (is it of the same size and method?); "
            + "; ".join(found)
        )


def _listed(names: list[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    if len(names) > _SHOWN:
        shown.append(f"and {len(names) - _SHOWN} more")
    return f"[{'; '.join(shown)}]"
