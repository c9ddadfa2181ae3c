"""Evaluation: quality of images, likelihood, probes of features, a digit classifier, nearest neighbours, reconstruction.

Everything here takes finished images, or models to look at them; nothing samples.
"""
