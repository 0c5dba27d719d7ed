"""Latency, throughput and layer times of runners, and the share of the hardware's peak.

`config` has the shapes. `latency` times batches, `lengths` times a data set with length buckets and without, and `layers` times
the layers of an engine. `work` counts the arithmetic, and `hardware` lists the peaks. Nothing heavy is imported here.
"""
