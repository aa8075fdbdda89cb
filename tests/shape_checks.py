"""The type checker that holds arrays to the shapes in the core's annotations, in tests alone."""

from beartype import BeartypeConf, beartype

# An int is a float, as in PEP 484.
typechecker = beartype(conf=BeartypeConf(is_pep484_tower=True))
