"""The benchmark: methods side by side on one model, one data set, one budget and one evaluation."""
