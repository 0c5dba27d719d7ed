"""Runner -> latency, throughput, share of the hardware's peak.

`config` says what is timed, `timing` times it, `lengths` does so on a data set with length buckets and without, `layers`
looks into a batch, `work` counts the arithmetic, `hardware` knows what a GPU can do at most and what it is doing. Nothing
heavy is imported here.
"""
