"""The networks: two video transformers, two causal video autoencoders, their text encoders."""
