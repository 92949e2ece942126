"""Losses and advantages as pure functions of arrays: no loops, no input or output, no state.

Axes: B sequences, L tokens of a sequence, P prompts, G samples of one prompt (B = P·G when
flattened). Every loss returns (sum, weight). Sums and weights of microbatches add up to those of
the whole batch, and the one division by the total weight comes last: the gradient does not depend
on how the batch was split.
"""
