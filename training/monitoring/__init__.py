"""What a run is worth while it goes on: held-out pairs, nearest neighbours, alarms, curves."""
