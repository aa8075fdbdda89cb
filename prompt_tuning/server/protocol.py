"""Bodies of requests, as in OpenAI's API; a field that is not here is refused by its name."""

from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

MOST_TEXTS = 256  # of a request
MOST_CHARACTERS = 32_768  # of a text

Text = Annotated[str, Field(max_length=MOST_CHARACTERS)]
Texts = Annotated[list[Text], Field(min_length=1, max_length=MOST_TEXTS)]
Name = Annotated[
    str,
    Field(
        max_length=160,
        description="A task's name, or NAME@DIGEST, which asks for exactly that file.",
    ),
]
Truncate = Annotated[bool, Field(description="Cut texts that are too long, instead of an error.")]
MaxTokens = Annotated[
    int | None, Field(ge=1, le=65_536, description="32 by default, or fewer if the server says so.")
]
Labels = Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=256)]


class Body(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool = False


class Completions(Body):
    """Text for texts. `prompt` is the encoder's input."""

    model: Name
    prompt: Text | Texts
    max_tokens: MaxTokens = None
    temperature: Annotated[
        float, Field(ge=0, le=100, description="0 for the most likely token at each step.")
    ] = 0.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    top_k: Annotated[int, Field(ge=0, le=2**31 - 1, description="0 for all tokens.")] = 0
    seed: Annotated[int | None, Field(ge=0, le=2**32 - 1)] = None
    stop: (
        Annotated[str, Field(max_length=200)]
        | Annotated[list[Annotated[str, Field(max_length=200)]], Field(max_length=4)]
        | None
    ) = None
    logprobs: Annotated[int | None, Field(ge=0, le=5)] = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    truncate: Truncate = False
    # Of OpenAI's API; only what has no effect is accepted.
    n: Literal[1] = 1
    best_of: Literal[1] = 1
    echo: Literal[False] = False

    @property
    def texts(self) -> list[str]:
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt

    @property
    def stops(self) -> tuple[str, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return tuple(filter(None, stops))


class Classify(Body):
    """The most probable label of each text."""

    model: Name
    input: Text | Texts
    labels: Labels | None = None
    truncate: Truncate = False

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class Embeddings(Body):
    """The encoder's mean state over each text's tokens."""

    model: Name
    input: Text | Texts
    encoding_format: Literal["float", "base64"] = "float"
    truncate: Truncate = False

    @property
    def texts(self) -> list[str]:
        return [self.input] if isinstance(self.input, str) else self.input


class RowOfFile(Body):
    """A line of `/v1/rows`: a text and its task. Other columns may be in `id`."""

    model: Name
    input: Text
    id: Any = None
    max_tokens: MaxTokens = None
    truncate: Truncate = False
