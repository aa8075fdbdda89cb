"""Progress of a run: a bar on a terminal, plain lines otherwise."""

import sys
from collections.abc import Mapping
from types import TracebackType

from tqdm import tqdm

from prompt_tuning.runtime import distributed


class Progress:
    """Shows loss, speed and remaining time. To be used as a context manager."""

    def __init__(self, start: int, total: int) -> None:
        self._total = total
        self._bar = (
            tqdm(initial=start, total=total, unit="step", dynamic_ncols=True)
            if sys.stderr.isatty() and distributed.is_main()
            else None
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, step: int, metrics: Mapping[str, float]) -> None:
        """Shows the metrics that `TrainLog.flush` returned at `step`."""
        loss = metrics["loss_per_nonpadding_target_token"]
        steps, tokens = metrics["timing/steps_per_second"], metrics["timing/tokens_per_second"]
        if self._bar is not None:
            self._bar.set_postfix_str(f"loss {loss:.3f}, {tokens:,.0f} tokens/s")
            self._bar.update(step - self._bar.n)
            return
        left = (self._total - step) / steps
        print(
            f"step {step}/{self._total}  loss {loss:.4f}  {steps:.2f} steps/s  "
            f"{tokens:,.0f} tokens/s  {_clock(left)} left",
            flush=True,
        )

    def note(self, text: str) -> None:
        """Prints a line above the bar."""
        tqdm.write(text) if self._bar is not None else print(text, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
