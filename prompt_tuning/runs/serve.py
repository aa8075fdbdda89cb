"""Answers requests over HTTP with one backbone and the prompts of many tasks."""

import threading

from prompt_tuning import embedded, sharding
from prompt_tuning.errors import MOST_TOKENS, UserError, true_or_false, whole_number
from prompt_tuning.runtime import preemption
from prompt_tuning.serving import model as serving
from prompt_tuning.sharding import Layout
from prompt_tuning.transformer.config import Config
from prompt_tuning.transformer.vocabulary import Vocabulary


def serve(
    *,
    config: Config,
    layout: Layout,
    initial_checkpoint: str,
    vocabulary: Vocabulary,
    prompts_folder: str | None = None,
    store_dir: str = "",
    name: str = "backbone",
    host: str = "127.0.0.1",
    port: int = 8000,
    keys_file: str = "",
    allow_updates: bool = False,
    allow_other_backbone: bool = False,
    batch_size: int = 64,
    input_length: int = 128,
    max_tokens: int = 64,
    most_prompts: int = 64,
    most_vectors: int = 100,
    seconds: int = 60,
    queue_seconds: int = 10,
    rank_memory_gib: float = 1.0,
) -> None:
    """Serves until SIGTERM or Ctrl-C; requests that were accepted are answered before it ends.

    Args:
      config, layout, initial_checkpoint: See `runs.train.train`.
      vocabulary: Vocabulary of the backbone.
      prompts_folder: Folder of prompts to serve, see `prompt_folder.files`; None for those of the
        embedded backbone, if it is that one.
      store_dir: Folder that keeps the tasks that are put; "" to keep them in memory.
      name: Name of the backbone among the models.
      host, port: Address; port 0 for any that is free.
      keys_file: JSON file of the keys' hashes, see `Keys.read`; "" for no keys.
      allow_updates: Whether tasks may be put and deleted; with keys, by those of "admin".
      allow_other_backbone: Whether a prompt's card may name another backbone.
      batch_size: Most rows of a batch.
      input_length: Most tokens of a text.
      max_tokens: Most tokens to generate.
      most_prompts, most_vectors: Room for prompts, and for the vectors of each.
      seconds: Time from a request to its answer.
      queue_seconds: Longest time that a request may have to wait, as estimated when it comes.
      rank_memory_gib: See `serving.load`.

    Raises:
      UserError: If a setting, a prompt or a key is wrong, or a package is missing.
    """
    try:
        import uvicorn  # noqa: F401

        from prompt_tuning.server import run
        from prompt_tuning.server.auth import LOCAL, Keys
        from prompt_tuning.server.device import Device, Shapes
        from prompt_tuning.server.service import Limits, Service
        from prompt_tuning.server.store import Store
        from prompt_tuning.server.tasks import files_of
    except ModuleNotFoundError as error:
        raise UserError(f"{error}: pip install 'prompt-tuning[serve]'") from error
    sharding.check_batch_size(batch_size, layout)
    whole_number("PORT", port, 0, 65_535)
    whole_number("INPUT_LENGTH", input_length, 1, MOST_TOKENS)
    whole_number("MAX_TOKENS", max_tokens, 1, MOST_TOKENS)
    allow_updates = true_or_false("ALLOW_UPDATES", allow_updates)
    if not keys_file and host not in LOCAL:
        raise UserError(
            f"HOST = {host!r}: everyone who reaches this address could use the server; set "
            "KEYS_FILE, or HOST = '127.0.0.1'"
        )
    if keys_file:
        keys = Keys.read(keys_file)
        if not allow_updates:
            keys = keys.without_updates()
    else:
        keys = Keys(is_open=True, open_updates=allow_updates)
    if prompts_folder is None:
        is_embedded = initial_checkpoint == embedded.backbone()
        prompts_folder = embedded.prompts() if is_embedded else ""
    files = files_of(prompts_folder) if prompts_folder else {}
    model = serving.load(
        config,
        initial_checkpoint,
        vocabulary,
        layout=layout,
        batch_size=batch_size,
        input_length=input_length,
        tasks=whole_number("MOST_PROMPTS", most_prompts, 1),
        prompt_length=whole_number("MOST_VECTORS", most_vectors, 1, MOST_TOKENS),
        allow_other_backbone=allow_other_backbone,
        rank_memory_gib=rank_memory_gib,
    )
    shapes = Shapes.of(batch_size, input_length, max_tokens, layout.row_shards)
    service = Service(
        name,
        Device(model, shapes),
        files,
        store=Store(store_dir) if store_dir else None,
        keys=keys,
        limits=Limits(seconds=seconds, queue_seconds=queue_seconds),
    )
    assert threading.current_thread() is threading.main_thread()
    run.run(service, host, port)
    preemption.end(0)  # a thread may be compiling, and cannot be stopped
