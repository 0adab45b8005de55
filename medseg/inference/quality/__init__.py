"""How far a prediction can be trusted: expected Dice, intervals of volumes, and flags for cases to review."""
