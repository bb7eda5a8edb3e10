"""Search a feature table for the images most like one: an index, and a sheet of what it found."""
