"""Applications: the command line and benchmarks. Arguments and display; the work is done in `genaim` and `samplers`."""
