"""Holds the weights file (.safetensors) that is installed with the package and goes by the name 'pretrained'."""
