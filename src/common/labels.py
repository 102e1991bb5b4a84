"""What a label says of a token."""

IGNORED = -100  # it is not learnt: torch's losses leave it out, too, unless they are told otherwise
