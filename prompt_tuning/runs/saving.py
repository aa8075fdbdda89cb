"""The main job: train a method's leaves on a task, measure what they gained, and save them."""

import dataclasses

from etils import epath

from prompt_tuning.checkpoint import card as cards
from prompt_tuning.checkpoint import prompts
from prompt_tuning.checkpoint import trained as trained_file
from prompt_tuning.checkpoint.card import Card
from prompt_tuning.methods.base import Method
from prompt_tuning.runtime import distributed
from prompt_tuning.t5.paths import Params, flatten


def save_trained(
    folder: epath.Path, which: str, method: Method, trained: Params, card: Card
) -> None:
    """Writes the trained leaves by path, and what the method exports on its own (the prompt), each
    with its card.
    """
    leaves = {path: distributed.to_host(leaf) for path, leaf in flatten(trained).items()}
    cards.save(folder / f"trained_{which}.safetensors", card)
    trained_file.save(folder / f"trained_{which}.safetensors", leaves)
    for name, array in method.exports(leaves).items():
        cards.save(folder / f"{name}_{which}.npy", dataclasses.replace(card, length=len(array)))
        for suffix in (".npy", ".safetensors"):
            prompts.save(folder / f"{name}_{which}{suffix}", array)
