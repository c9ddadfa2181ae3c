"""Evaluation: an independent digit classifier, precision and recall, nearest neighbours, reconstruction.

Everything here takes finished images; nothing generates them.
"""
