"""The shared transformer and what every model needs around it.

Shape legend, used in all of genaim (a file that needs more letters says so at its top):

    B  batch          N  tokens of an image     S  elements of the fed sequence (tokens, class, buffer, prefix)
    n  tokens of one step                       D  width of the transformer
    H  heads          V  codebook size          C  channels of a token or latent        K  scales
"""
