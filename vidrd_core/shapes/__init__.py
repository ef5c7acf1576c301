"""The moving-shapes data set: scenes with a known ground truth, their tracker, and the comparison of methods."""
