"""Training of the viseme network: speech synthesis with known phoneme times, training, evaluation.

The preview never imports this package, which needs torch and the speech synthesisers listed in its README.
"""
