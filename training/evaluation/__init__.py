"""Frozen-feature evaluations: what they compute on arrays, and where the arrays come from."""
