"""gancli: train generative adversarial networks from the shell, from composed YAML."""

__version__ = "0.2.0"
