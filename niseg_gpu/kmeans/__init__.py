"""k-means over whole spectra: every pixel's spectrum is a point, clusters are materials.

Lloyd's algorithm (10.1109/TIT.1982.1056489) from k-means++ starts (Arthur & Vassilvitskii, SODA 2007), one pass over
the data an iteration.
"""
