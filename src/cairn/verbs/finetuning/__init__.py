"""The training of a whole stack: its pairs, its phases, its own answers, adapters side by side."""
