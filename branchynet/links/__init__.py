"""Links of the original, under their original module names."""
