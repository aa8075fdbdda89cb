"""Exit statuses of the commands, as shells and schedulers read them."""

import os

USAGE_ERROR = 2
RESUMABLE = os.EX_TEMPFAIL  # 75: the same command, run again, continues the work
INTERRUPTED = 130  # by Ctrl-C: 128 + SIGINT
