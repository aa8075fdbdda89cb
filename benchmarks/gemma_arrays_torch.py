"""Random tiny T5Gemmas of transformers, and what they compute, for tests/gemma/test_parity.py.

Run by gemma_arrays.py in the peer's environment; imports nothing of this package. Writes a folder
per model: config.json and model.safetensors as transformers saves them, and arrays.npz.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import T5GemmaConfig, T5GemmaForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

VOCABULARY, ROWS, INPUTS, TARGETS, WRITTEN = 40, 4, 9, 5, 8
PROMPTS = (0, 5, 20)
START = 2
GROUPED: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 6,
    "query_pre_attn_scalar": 10,
    "sliding_window": 3,
    "attn_logit_softcapping": 4.0,
    "final_logit_softcapping": 3.0,
}
MODELS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    # Four heads share two keys; the window is shorter than the input; both caps act.
    "grouped": (GROUPED, GROUPED | {"num_hidden_layers": 2}),
    # Stacks of different widths and heads, as 9B-2B.
    "unequal": (
        GROUPED | {"num_hidden_layers": 2, "sliding_window": 4096},
        GROUPED
        | {
            "hidden_size": 12,
            "intermediate_size": 20,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "head_dim": 4,
        },
    ),
    # No caps, other kinds of layers, another base of the rotary positions.
    "uncapped": tuple(
        GROUPED
        | {
            "num_hidden_layers": 2,
            "num_key_value_heads": 4,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
            "layer_types": ["full_attention", "sliding_attention"],
            "rope_parameters": {"rope_type": "default", "rope_theta": 100.0},
        }
        for _ in range(2)
    ),
}


def main() -> None:
    folder = Path(sys.argv[1])
    for number, (name, (encoder, decoder)) in enumerate(MODELS.items()):
        model = random_model(encoder, decoder, seed=number)
        model.save_pretrained(folder / name)
        (folder / name / "generation_config.json").unlink(missing_ok=True)
        np.savez_compressed(folder / name / "arrays.npz", **arrays(model))


def random_model(
    encoder: dict[str, Any], decoder: dict[str, Any], seed: int
) -> T5GemmaForConditionalGeneration:
    """Weights large enough for caps and windows to matter."""
    torch.manual_seed(seed)
    config = T5GemmaConfig(
        encoder={"vocab_size": VOCABULARY, **encoder},
        decoder={"vocab_size": VOCABULARY, **decoder},
        vocab_size=VOCABULARY,
        attn_implementation="eager",
    )
    model = T5GemmaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for path, leaf in model.named_parameters():
            scale = 0.3 if leaf.ndim == 1 else leaf.shape[1] ** -0.5
            scale *= 2 if "q_proj" in path or "k_proj" in path else 1
            leaf.normal_(0.0, scale)
    return model


def arrays(model: T5GemmaForConditionalGeneration) -> dict[str, np.ndarray]:
    """Tokens; and for each prompt length the prompt and what follows from it."""
    draw = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCABULARY, (ROWS, INPUTS), generator=draw)
    ids[:, 0] = 2
    lengths = torch.tensor([9, 1, 4, 7])
    ids = ids.masked_fill(torch.arange(INPUTS) >= lengths[:, None], 0)
    targets = torch.randint(3, VOCABULARY, (ROWS, TARGETS), generator=draw)
    ends = torch.tensor([5, 3, 1, 4])
    targets = targets.masked_fill(torch.arange(TARGETS) >= ends[:, None], 0)
    found = {"inputs": ids, "targets": targets}
    width = model.config.encoder.hidden_size
    for length in PROMPTS:
        prompt = torch.randn((length, width), generator=draw) * width**-0.5
        found |= {f"{name}_{length}": x for name, x in outputs(model, ids, targets, prompt).items()}
    return {name: np.asarray(x.detach()) for name, x in found.items()}


def outputs(
    model: T5GemmaForConditionalGeneration,
    ids: torch.Tensor,
    targets: torch.Tensor,
    prompt: torch.Tensor,
) -> dict[str, torch.Tensor]:
    prompt = prompt.requires_grad_()
    embedded = model.model.encoder.embed_tokens(ids)
    embedded = torch.cat([prompt.expand(len(ids), *prompt.shape), embedded], 1)
    real = torch.cat([torch.ones(len(ids), len(prompt)), (ids > 0).float()], 1).long()
    labels = targets.masked_fill(targets == 0, -100)
    output = model(inputs_embeds=embedded, attention_mask=real, labels=labels, use_cache=False)
    output.loss.backward()
    states = output.encoder_last_hidden_state
    written = torch.full((len(ids), 1), START)
    with torch.no_grad():
        for _ in range(WRITTEN):
            logits = model(
                encoder_outputs=BaseModelOutput(last_hidden_state=states),
                attention_mask=real,
                decoder_input_ids=written,
                decoder_attention_mask=torch.ones_like(written),
                use_cache=False,
            ).logits[:, -1]
            written = torch.cat([written, logits.argmax(-1, keepdim=True)], 1)
    if not len(prompt):  # the peer's own cache writes the same
        options = {"do_sample": False, "max_new_tokens": WRITTEN, "eos_token_id": None}
        own = model.generate(ids, attention_mask=real, decoder_start_token_id=START, **options)
        assert torch.equal(own, written), (own, written)
    return {
        "prompt": prompt,
        "states": states * real[..., None],
        "logits": output.logits,
        "loss": output.loss,
        "gradient": prompt.grad if len(prompt) else torch.zeros_like(prompt),
        "greedy": written[:, 1:],
    }


if __name__ == "__main__":
    main()
