"""Accuracy of models: of a run over its validation images, of any weights over any images."""
