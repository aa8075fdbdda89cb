"""Compares the arrays of a checkpoint, in any format, with those that a model needs."""

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
    """Checks that a checkpoint has every wanted leaf with the right shape, and no other leaf.

    Args:
      available: shapes of the checkpoint's parameters by path (`encoder/.../kernel`, without a
        prefix of the format such as T5X's `target/`).
      wanted: shapes of the model's parameters by path.
      path: path of the checkpoint, for the error message.
      ignore: whether an unexpected path is allowed.

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
    lists = [f"{kind}: {_listed(names)}" for kind, names in problems.items() if names]
    if lists:
        raise CheckpointError(
            f"{path}: the checkpoint does not fit the model (is it of the same size and method?); "
            + "; ".join(lists)
        )


def _listed(names: list[str]) -> str:
    shown = sorted(names)[:_SHOWN]
    if len(names) > _SHOWN:
        shown.append(f"and {len(names) - _SHOWN} more")
    return f"[{'; '.join(shown)}]"
