"""Contains the weights files (.safetensors) that are installed with the package: the face detector's, whose origin
NOTICE states, and a classifier's, which is loaded by the name 'pretrained'."""
