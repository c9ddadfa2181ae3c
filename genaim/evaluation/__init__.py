"""Evaluation: quality of images, likelihood, probes of features, digits, nearest neighbours, reconstruction, scaling.

Nothing here imports a sampler: who needs generated images passes them, or a ``sample_fn``.
"""
