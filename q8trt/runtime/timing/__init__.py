"""Latency, throughput and layer times of runners, and the share of the hardware's peak.

`config` holds the shapes, `latency` times batches, `lengths` a data set with length buckets and without, `layers` the layers
of an engine; `work` counts the arithmetic, `hardware` lists the peaks. Nothing heavy is imported here.
"""
