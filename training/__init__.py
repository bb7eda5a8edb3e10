"""How a model is made: methods, data, trainer, monitor, recipes."""
