"""Our own experiments: the study, its corpora, generated sets. Not in the wheel."""
