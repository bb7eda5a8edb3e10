"""The parts of batch extraction: where images come from, what a table holds, where it goes."""
