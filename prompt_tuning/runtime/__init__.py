"""Files, locks, signals and processes: what a run needs of the operating system."""
