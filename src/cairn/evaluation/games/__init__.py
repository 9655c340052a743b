"""Text games with a verifiable outcome: what self-play needs to know about a game, and who plays it how well."""
