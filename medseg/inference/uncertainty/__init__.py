"""How sure a model is: sums over the probabilities of a case, and samples of its logits."""
