"""Question sets that Cairn reads by itself, because lm-evaluation-harness has no task for them."""
