"""How the viseme network was made: speech synthesis with known phoneme times, training, evaluation.

Nothing that runs the preview imports this package; it needs torch and the speech synthesisers of its README.
"""
