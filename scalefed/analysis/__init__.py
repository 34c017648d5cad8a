"""What do several fits, or the runs alone, say? Comparisons of laws, hypothesis tests, effects, isoFLOP parabolas."""
