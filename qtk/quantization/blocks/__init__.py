"""One decoder block and its calibration rows: statistics, quantizing, tuning, judging."""
