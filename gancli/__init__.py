"""gancli: train generative adversarial networks from the shell, from composed YAML."""

__version__ = "0.1.0"
