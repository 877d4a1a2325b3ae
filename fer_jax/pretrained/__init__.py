"""Holds the weights files (.safetensors) that are installed with the package: the face detector's, whose origin NOTICE
gives, and, under the name 'pretrained', a classifier's."""
