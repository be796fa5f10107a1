"""A page on this machine: drop images, see what a model says of them, move the threshold.

``judging`` runs the model and keeps what it says, ``view`` tells it for any threshold, ``page`` is the page (Gradio).
"""
